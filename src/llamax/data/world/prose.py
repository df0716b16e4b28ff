"""Plain prose: the docstrings of the standard library's modules, classes and functions."""

import functools
import importlib
import inspect
from collections.abc import Iterator

from llamax.data.world.functions import functions
from llamax.data.world.split import unit, words

MODULES = (  # noqa: SIM905
    "abc argparse array ast asyncio base64 bisect calendar cmd code codecs collections concurrent.futures "
    "configparser contextlib copy csv dataclasses datetime decimal difflib dis email.message enum fileinput "
    "filecmp fnmatch fractions ftplib functools getopt getpass gettext glob graphlib gzip hashlib heapq hmac "
    "html.parser http.client http.cookies imaplib inspect ipaddress itertools json locale logging mailbox "
    "mimetypes numbers operator os optparse pathlib pdb pickle pickletools pkgutil platform plistlib poplib "
    "pprint profile queue random re sched secrets selectors shelve shlex shutil smtplib socket socketserver "
    "statistics string struct subprocess symtable tarfile tempfile textwrap threading timeit token tokenize "
    "trace traceback types typing unittest urllib.parse urllib.request uuid warnings wave weakref xml.dom "
    "xml.etree.ElementTree xml.sax xmlrpc.client zipfile zoneinfo"
).split()
HELD_OUT = 0.1
LONGEST, SHORTEST = 480, 120  # characters of a paragraph


def paragraphs(side: str) -> Iterator[str]:
    """Paragraphs of one side, `train` or `held_out`; the side is that of the paragraph's own text."""
    for paragraph in _all():
        if (unit("prose", paragraph) < HELD_OUT) == (side == "held_out"):
            yield paragraph


@functools.cache
def _all() -> tuple[str, ...]:
    """Every paragraph once, in a fixed order; none that repeats a docstring that the problems are made from."""
    problems = [" ".join(words(function.doc)) for function in functions()]
    found: dict[str, None] = {}
    for name in MODULES:
        for doc in _docs(name):
            for paragraph in doc.split("\n\n"):
                paragraph = paragraph.strip("\n")
                if paragraph.isascii() and SHORTEST <= len(paragraph) <= LONGEST and paragraph not in found:
                    plain = " ".join(words(paragraph))
                    if not any(problem in plain for problem in problems):
                        found[paragraph] = None
    return tuple(found)


def _docs(name: str) -> Iterator[str]:
    """Docstrings of a module, its functions, its classes and their methods, written in that module."""
    module = importlib.import_module(name)
    yield inspect.getdoc(module) or ""
    for _, member in sorted(vars(module).items()):
        if getattr(member, "__module__", None) != name:
            continue
        if inspect.isclass(member):
            yield inspect.getdoc(member) or ""
            methods = (method for _, method in sorted(vars(member).items()) if inspect.isfunction(method))
            yield from (inspect.cleandoc(method.__doc__ or "") for method in methods)
        elif inspect.isfunction(member):
            yield inspect.getdoc(member) or ""
