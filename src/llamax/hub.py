"""Ask the Hugging Face hub once, briefly, before its client does, which would retry for a minute without a network.

`HF_HUB_OFFLINE` is respected: nothing is asked then.
"""

import contextlib
from collections.abc import Iterator
from typing import Literal

from llamax.errors import LlamaxError

HUB_TIMEOUT = 5.0  # seconds to find out that there is no network


def commit_of(name: str, kind: Literal["dataset", "model"], error: type[LlamaxError], remedy: str) -> str:
    """The commit that the hub's `main` is at. Raises: `error`, one line: it cannot be asked, or has no `name`."""
    from huggingface_hub import HfApi

    with asked(name, kind, error, remedy):
        return HfApi().repo_info(name, repo_type=kind, timeout=HUB_TIMEOUT).sha


@contextlib.contextmanager
def asked(name: str, kind: Literal["dataset", "model"], error: type[LlamaxError], remedy: str) -> Iterator[None]:
    """Make sure that the hub has `name`, then run the block that fetches it.

    Raises: `error`, one line with the reason and `remedy`, for whatever goes wrong in either.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        if not constants.HF_HUB_OFFLINE:
            HfApi().repo_info(name, repo_type=kind, timeout=HUB_TIMEOUT)
        yield
    except RepositoryNotFoundError:
        raise error(f"{name}: no such {kind} on the hub, or not for you") from None
    except Exception as fault:  # the hub's client, its transport and `datasets` share no base class
        reason = (str(fault).strip() or type(fault).__name__).splitlines()[0]
        raise error(f"{name}: not to be had from the hub ({reason.rstrip('.')}). {remedy}") from None
