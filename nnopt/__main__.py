r"""The command line over the recipes.

    python -m nnopt train image --preset laptop --output runs/laptop
    python -m nnopt train image --preset cpu --set epochs=5 optimizer=adamw --output runs/short
    python -m nnopt test runs/laptop
    python -m nnopt classify runs/laptop holiday.jpg
    python -m nnopt train translation --preset cpu --output runs/multi30k
    printf 'A man is riding a bike.\n' | python -m nnopt translate runs/multi30k

What goes wrong ends in one sentence on the standard error: exit status 2 for a wrong command, 1 for what fails, 130
after Ctrl-C. The same command again goes on with a training that was interrupted.
"""

import gc

if __name__ == "__main__":  # a process of ours, in which what `nnopt` has imported stays to the end
    gc.freeze()  # not to look through it for garbage saves a second

import argparse
import contextlib
import dataclasses
import errno
import os
import pathlib
import re
import sys
import traceback
import typing
import warnings
from argparse import ArgumentError

import jsonargparse
from jsonargparse.typing import PositiveInt

from nnopt.recipes import image, report, translation, translation_report
from nnopt.recipes.running import STRATEGIES, RunFolder

# Recipe, training, test, summary of the report.
RECIPES = {
    "image": (image.ImageRecipe, image.train_images, image.test_images, report.summary),
    "translation": (
        translation.TranslationRecipe, translation.train_translation, translation.test_translation,
        translation_report.summary,
    ),
}  # fmt: skip
# A wrong command raises ArgumentError, in place of printing the usage.
STRICT = {"exit_on_error": False, "allow_abbrev": False}


def main(arguments=None):
    """Runs a command and returns its exit status.

    Args:
        arguments: The words after `python -m nnopt`; None for those of this process.
    """
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        _run(arguments)
    except KeyboardInterrupt:
        return _fail("interrupted; run the same command again to go on", 130)
    except ArgumentError as error:
        return _fail(error, 2)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where the rest goes when Python ends
        return _fail("nobody reads the output any longer", 1)
    except OSError as error:
        return _fail(_of_system(error), 1)
    except (ValueError, TypeError, ArithmeticError, ImportError) as error:
        if not _is_ours(error):
            raise
        return _fail(error, 1)
    return 0


def _run(arguments):
    commands = {"train": _train, "test": _test, "classify": _classify, "translate": _translate}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(__doc__)
    elif arguments[0] not in commands:
        raise ArgumentError(None, f"The command must be one of {', '.join(commands)}. Received: {arguments[0]}")
    else:
        commands[arguments[0]](arguments[1:])


def _train(arguments):
    kind = arguments[0] if arguments else "nothing"
    if kind not in RECIPES:
        raise ArgumentError(None, f"`train` must be followed by one of {', '.join(RECIPES)}. Received: {kind}")
    recipe_class, train, _, summary = RECIPES[kind]
    recipe, options = _recipe(kind, recipe_class, arguments[1:])
    print(recipe, flush=True)
    with warnings.catch_warnings():
        warnings.showwarning = lambda message, *_: print(message)  # such as Resume's, that the run is complete
        together = {"hosts": options.hosts.split(","), "index": options.index} if options.hosts else {}
        measured = train(recipe, options.output, strategy=options.strategy, save_every=options.save_every, **together)
    print(summary(measured))
    print(f"written to {options.output}")


def _recipe(kind, recipe_class, arguments):
    """Returns the recipe that the words describe, and the other options."""
    shown = "\n\n".join(f"{name}: {function.__doc__.strip()}" for name, function in recipe_class.presets.items())
    parser = jsonargparse.ArgumentParser(f"python -m nnopt train {kind}", description=f"Presets:\n\n{shown}", **STRICT)
    parser.add_argument("--preset", choices=tuple(recipe_class.presets), required=True, help="what to start from")
    parser.add_argument("--output", required=True, help="folder of this run; the same command again goes on in it")
    parser.add_argument("--strategy", choices=tuple(STRATEGIES), default="none", help="spreads batches over devices")
    parser.add_argument("--hosts", default="", help="with --strategy jax name:port of all hosts, the first one's first")
    parser.add_argument("--index", type=int, default=0, help="which of the hosts this one is, from 0")
    parser.add_argument("--save_every", type=int, default=200, help="batches between checkpoints within an epoch")
    parser.add_argument("--set", metavar="name=value", nargs="+", help="any of the recipe's fields, as below")
    parser.add_class_arguments(recipe_class)
    types = {field.name: field.type for field in dataclasses.fields(recipe_class)}
    words = _spelled_out(arguments, types)
    try:
        preset = parser.parse_args(words).preset
        parser.set_defaults(dataclasses.asdict(recipe_class.preset(preset)))
        options = parser.parse_args(words)
        return recipe_class(**{name: options[name] for name in types}), options
    except ArgumentError as error:
        named = re.match(r'Parser key "(\w+)":', str(error))
        if named is None or named[1] not in types:
            raise
        kind = getattr(types[named[1]], "__name__", None) if isinstance(types[named[1]], type) else types[named[1]]
        value = next(word for word in reversed(words) if word.startswith(f"--{named[1]}"))[2:]
        kind = str(kind).replace("typing.", "")
        raise ArgumentError(None, f"`{named[1]}` must be of type {kind}. Received: {value}") from None
    except (ValueError, TypeError) as error:
        raise ArgumentError(None, str(error)) from None


def _spelled_out(arguments, types):
    """Returns the words with `--set name=value ...` as `--name=value ...`; a tuple may stand without brackets."""
    settings = argparse.ArgumentParser(add_help=False, **STRICT)
    settings.add_argument("--set", nargs="+", action="extend", default=[])
    found, words = settings.parse_known_args(arguments)
    for word in found.set:
        name, equals, value = word.partition("=")
        if not equals or name not in types:
            rule = f"`--set` takes name=value, with a name of {', '.join(types)}"
            raise ArgumentError(None, f"{rule}. Received: {word}")
        bare = typing.get_origin(types[name]) is tuple and not value.startswith("[")
        words.append(f"--{name}=[{value}]" if bare else f"--{name}={value}")
    return words


def _test(arguments):
    output = _parser("test", "Tests a finished run's network again.").parse_args(arguments).output
    fields = RunFolder(output).fields()
    for recipe_class, _, test, summary in RECIPES.values():
        if fields == {field.name for field in dataclasses.fields(recipe_class)}:
            return print(summary(test(output)))
    raise ValueError(f"recipe.json must be that of one of {', '.join(RECIPES)}. Received: {output}, with other fields")


def _classify(arguments):
    parser = _parser("classify", "Names what pictures show.")
    parser.add_argument("pictures", nargs="+", help="picture files")
    options = parser.parse_args(arguments)
    for path, best in zip(options.pictures, image.classify(options.output, options.pictures)):
        print(path)
        for name, probability in best:
            print(f"  {probability:7.2%}  {name}")


def _translate(arguments):
    parser = _parser("translate", "Translates UTF-8 text, a line for each line.")
    parser.add_argument("file", nargs="?", help="text file; the standard input where it is left out")
    parser.add_argument("--beam_width", type=PositiveInt, help="1 is greedy search; the recipe's where it is left out")
    options = parser.parse_args(arguments)
    if options.file is None and sys.stdin is None:
        raise ArgumentError(None, "`file` must be given where the standard input is closed. Received: no file")
    name = 0 if options.file is None else options.file
    with open(name, "rb", closefd=name != 0) as source:
        translator = translation.Translator(options.output)
        for number, (translated, remarks) in enumerate(translator.stream(source, options.beam_width), 1):
            if remarks:
                print(f"nnopt: line {number}: {'; '.join(remarks)}", file=sys.stderr)
            sys.stdout.buffer.write(translated.encode() + b"\n")
            sys.stdout.buffer.flush()


def _parser(command, description):
    """Returns the parser of a command on a finished run."""
    parser = jsonargparse.ArgumentParser(f"python -m nnopt {command}", description=description, **STRICT)
    parser.add_argument("output", help="the run's folder")
    return parser


def _fail(message, status):
    with contextlib.suppress(OSError):
        print(f"nnopt: {' '.join(str(message).split())}", file=sys.stderr, flush=True)
    return status


def _of_system(error):
    if error.errno == errno.ENOSPC:
        return "the disk is full; free some space and run the same command again to go on from the last checkpoint"
    if error.errno is None or error.filename is None:
        return error
    return f"{error.filename}: {error.strerror}"


def _is_ours(error):
    """Whether an error was raised by this package, which words it for its user; others are faults to be looked into."""
    frames = traceback.extract_tb(error.__traceback__)
    return pathlib.Path(frames[-1].filename).is_relative_to(pathlib.Path(__file__).parent)


if __name__ == "__main__":
    sys.exit(main())
