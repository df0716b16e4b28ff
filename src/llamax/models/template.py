"""Which template a model was trained with: written down when it is saved, compared when it is used."""

from pathlib import Path

from llamax.data.templates import Template
from llamax.errors import ModelError
from llamax.models.save import read_notes


def check_template(folder: Path | str, template: Template) -> None:
    """See to it that a model is prompted as it was trained. A model of other making, which says nothing, passes.

    Raises: ModelError: its `llamax.json` names the fingerprint of another template, or of another version of this one.
    """
    trained = read_notes(folder).get("template")
    if trained not in (None, template.fingerprint):
        raise ModelError(
            f"{folder}: trained with template {trained[:8]}, but {template.name!r} is {template.fingerprint[:8]}: "
            "prompt it with the template that it was trained with"
        )
