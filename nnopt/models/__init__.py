"""Model families, one file each, named as the article names them."""

from nnopt.models.adversarial import AdversarialNetwork, gan
from nnopt.models.attention import seq2seq
from nnopt.models.convolutional import cnn
from nnopt.models.feedforward import mlp
from nnopt.models.recurrent import rnn
from nnopt.models.residual import resnet
from nnopt.models.transformer import transformer

__all__ = ["AdversarialNetwork", "cnn", "gan", "mlp", "resnet", "rnn", "seq2seq", "transformer"]
