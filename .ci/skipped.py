"""Prints the tests that a run skipped for want of a package, one a line, as pytest takes them.

    python .ci/skipped.py REPORT

REPORT is what `pytest -o junit_family=xunit1 --junitxml=REPORT` wrote.
"""

import sys
from xml.etree import ElementTree

for case in ElementTree.parse(sys.argv[1]).iter("testcase"):
    skip = case.find("skipped")
    if skip is not None and ("could not import" in skip.get("message", "") or "needs " in skip.get("message", "")):
        print(f"{case.get('file')}::{case.get('name')}")
