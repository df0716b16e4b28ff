"""The rating page: two answers side by side, blind, and four ways to judge them.

What reaches the browser is the prompt, two answers as plain text, and numbers; never a model's name, which stays in the
plan on this side. The browser sends back the number of the item that it *showed*, so that a second click, or a second
tab of the same rater, can only repeat a vote that is there, and never votes on an item that nobody has read.

Gradio serves it without its analytics, its API page and its fonts; a content security policy forbids the browser to ask
any other host for anything.
"""

import html
import os
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr
from fastapi import FastAPI, Request
from fastapi.responses import PlainTextResponse

from llamax.errors import LlamaxError, ParameterError
from llamax.evaluation.human.plan import Study, names_in
from llamax.evaluation.human.store import Item, Sheet, Stale, Vote, cast, checked_code, open_sheet

HERE = Path(__file__).parent
CHOICES = ("left", "right", "tie", "both_bad")
BUTTONS = (  # (choice, id, text); the key of each is its place, from 1
    ("left", "choose-left", "A is better"),
    ("tie", "choose-tie", "About equal"),
    ("both_bad", "choose-bad", "Both are bad"),
    ("right", "choose-right", "B is better"),
)
HIDDEN_NAME = "[…]"
OPEN = ("/gradio_api/queue/", "/gradio_api/run/", "/gradio_api/api/", "/gradio_api/heartbeat/", "/assets/", "/static/")
OPEN_EXACTLY = (
    "/", "/config", "/theme.css", "/manifest.json", "/favicon.ico",
    "/gradio_api/app_id",  # a page that lost the server asks for it until it is back
)  # fmt: skip
POLICY = (
    "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; style-src 'self' 'unsafe-inline'; "
    "img-src 'self' data: blob:; font-src 'self' data:; connect-src 'self'; worker-src 'self' blob:; "
    "object-src 'none'; frame-ancestors 'none'; base-uri 'self'; form-action 'self'"
)
GUIDE = (
    "Which answer would you rather have been given? Judge first whether it does what was asked, then whether it is "
    "true, then whether it is clear. Length alone is no merit. If you cannot tell them apart, choose “About equal”; if "
    "neither is of use, “Both are bad”. Do not look up who may have written them."
)


class View(NamedTuple):
    """What the page shows, in the order of the components that it fills."""

    signed_in: bool
    finished: bool
    bar: str  # HTML: who rates, and how far
    prompt: str  # HTML
    left: str  # HTML
    right: str  # HTML
    shown: str  # number of the item shown
    reason: str
    note: str  # HTML
    can_go_back: bool


class Desk:
    """The study on this side of the page: turns what a rater does into votes and into the next view."""

    def __init__(self, study: Study):
        self.study = study
        self.names = names_in(study.plan)

    def sign_in(self, code: str) -> tuple[str, View]:
        """The rater's checked code and first view; "" and the sign-in view with a note if it is refused."""
        if not code.strip():
            return "", signed_out()
        try:
            code = checked_code(code)
            return code, self.view(self._sheet(code))
        except LlamaxError as error:
            return "", signed_out(said(error))

    def vote(self, code: str, shown: str, choice: str, reason: str) -> View:
        """Save a vote on the item `shown`, and show the next one. What fails is said on the page."""
        try:
            before = self._sheet(code)
            number = int(shown)
            revise = shown.startswith("+")  # the rater went back on purpose
            sheet = cast(self.study.folder, self.study.plan, code, number, choice, reason, revise=revise)
        except Stale:
            return self.view(before, note="That pair was already rated, in another window or by a second click.")
        except (LlamaxError, OSError, ValueError) as error:
            return self._unsaved(code, shown, reason, error)
        return self.view(sheet, note="Changed." if revise else "Saved.")

    def back(self, code: str, shown: str) -> View:
        """Show the last item before `shown` again, with its reason, to be voted on anew."""
        try:
            sheet = self._sheet(code)
            here = int(shown or len(sheet.items))
            earlier = [number for number in sheet.votes if number < here]
            return self.view(sheet, max(earlier)) if earlier else self.view(sheet)
        except (LlamaxError, OSError, ValueError) as error:
            return self._unsaved(code, shown, "", error)

    def _sheet(self, code: str) -> Sheet:
        return open_sheet(self.study.folder, self.study.plan, checked_code(code))

    def _unsaved(self, code: str, shown: str, reason: str, error: Exception) -> View:
        """The same item again with what went wrong; the whole story is for the server's log, which may name things."""
        print(f"human-eval: rater {code!r}, item {shown!r}: {error}", file=sys.stderr, flush=True)
        note = "This vote was not saved. Try again; if it happens twice, tell whoever runs this study."
        try:
            sheet = self._sheet(code)
            number = int(shown)
            view = self.view(sheet, number if 0 <= number < len(sheet.items) else None)
        except (LlamaxError, OSError, ValueError):
            return signed_out(note)
        return view._replace(reason=reason, shown=shown, note=alert(note))

    def view(self, sheet: Sheet, number: int | None = None, note: str = "") -> View:
        """The item `number` to be changed, else the first one without a vote, else the end."""
        again = number is not None
        number = sheet.next if number is None else number
        bar = progress(sheet)
        if number is None:
            return View(True, True, bar, "", "", "", "", "", thanks(sheet), bool(sheet.votes))
        vote = sheet.votes.get(number)
        texts = self._texts(sheet.items[number])
        if again and vote:
            note = f"Pair {number + 1} again: you chose “{button_text(vote)}”. Choose anew to change it."
        shown = f"+{number}" if again and vote else str(number)
        can_go_back = any(earlier < number for earlier in sheet.votes)
        return View(
            True, False, bar, *texts, shown, vote.reason if again and vote else "", f"<p>{html.escape(note)}</p>",
            can_go_back,
        )  # fmt: skip

    def _texts(self, item: Item) -> tuple[str, str, str]:
        """Prompt, left and right answer as HTML."""
        turns = self.study.prompts[item.prompt].turns
        left, right = (self.study.answers[name][item.prompt] for name in (item.left, item.right))
        ask = panel("Prompt", "", turns, self.names, "Message")
        return ask, panel("A", "Answer", left, self.names, "Reply"), panel("B", "Answer", right, self.names, "Reply")


def said(error: Exception) -> str:
    """What a page may say of an error: a bad code in full; files and models stay on this side."""
    if isinstance(error, ParameterError):
        return str(error)
    print(f"human-eval: {error}", file=sys.stderr, flush=True)
    return "Your votes cannot be opened. Please tell whoever runs this study; nothing is lost."


def signed_out(note: str = "") -> View:
    return View(False, False, "", "", "", "", "", "", alert(note), False)


def alert(text: str) -> str:
    return f'<p class="alert" role="alert">{html.escape(text)}</p>' if text else ""


def button_text(vote: Vote) -> str:
    return next(text for choice, _, text in BUTTONS if choice == vote.choice)


def progress(sheet: Sheet) -> str:
    """Who rates, and how many of how many pairs are done, as text and as a bar."""
    done, total = len(sheet.votes), len(sheet.items)
    share = 100 * done / max(total, 1)
    return (
        f'<div class="who">Rater <b>{html.escape(sheet.rater)}</b></div>'
        f'<div class="track" role="progressbar" aria-label="pairs rated" aria-valuemin="0" aria-valuemax="{total}" '
        f'aria-valuenow="{done}"><i style="width:{share:.1f}%"></i></div>'
        f'<div class="count"><b>{done}</b> of {total} rated</div>'
    )


def thanks(sheet: Sheet) -> str:
    return (
        f'<div class="thanks"><div class="tick" aria-hidden="true">✓</div><h2>Thank you</h2>'
        f"<p>All {len(sheet.items)} pairs are rated and saved. You may close this window.</p></div>"
    )


def panel(title: str, prefix: str, texts: Sequence[str], names: re.Pattern, part: str) -> str:
    """A card of texts, one per turn, each shown as the plain text that it is."""
    label = f"{prefix} {title}".strip()
    blocks = []
    for number, text in enumerate(texts, 1):
        if len(texts) > 1:
            blocks.append(f"<h4>{part} {number}</h4>")
        empty = '<p class="empty">(an empty answer)</p>'
        blocks.append(f'<div class="text" dir="auto">{plain(text, names)}</div>' if text else empty)
    head = f"{prefix} <b>{title}</b>" if prefix else title
    return (
        f'<section class="panel"><h3>{head}</h3><div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f"{''.join(blocks)}</div></section>"
    )


def plain(text: str, names: re.Pattern) -> str:
    """Text as HTML that shows it character by character, the models' names hidden.

    Dollar signs and braces are escaped as well: gradio fills templates with `${...}` and `{{...}}`.
    """
    safe = html.escape(names.sub(HIDDEN_NAME, text))
    return re.sub(r"[${}`\\]", lambda found: f"&#{ord(found[0])};", safe)


def build(study: Study) -> gr.Blocks:
    """The page. Every event is private, so that nothing is listed as an API."""
    desk = Desk(study)
    with gr.Blocks(title="Side by side", analytics_enabled=False, fill_width=True) as page:
        remembered = gr.BrowserState("", storage_key=f"rater-{study.plan.digest[:12]}", secret=study.plan.digest)
        shown = gr.Textbox(visible="hidden", elem_id="shown", container=False)
        note = gr.HTML(elem_id="note", padding=False)
        with gr.Column(visible=False, elem_id="door") as door:
            gr.HTML(f"<h1>Side by side</h1><p>{GUIDE}</p>", elem_id="welcome", padding=False)
            code = gr.Textbox(
                label="Your rater code", info="Letters and digits, as you were told. Come back with it any time.",
                elem_id="code", max_length=64,
            )  # fmt: skip
            enter = gr.Button("Begin", variant="primary", elem_id="enter")
        with gr.Column(visible=False, elem_id="desk") as room:
            with gr.Row(elem_id="top"):
                bar = gr.HTML(elem_id="bar", padding=False)
                leave = gr.Button("Not you?", size="sm", elem_id="leave", min_width=80)
            with gr.Column(elem_id="work") as work:
                ask = gr.HTML(elem_id="prompt", padding=False)
                with gr.Row(elem_id="answers", equal_height=True):
                    left = gr.HTML(elem_id="left", padding=False)
                    right = gr.HTML(elem_id="right", padding=False)
                with gr.Column(elem_id="verdict"):
                    with gr.Row(elem_id="buttons"):
                        chosen = [
                            (choice, gr.Button(text, elem_id=name, elem_classes="choice", min_width=120))
                            for choice, name, text in BUTTONS
                        ]
                    reason = gr.Textbox(
                        placeholder="Why? (optional; saved with your choice)", elem_id="reason", lines=1, max_lines=3,
                        max_length=2000, show_label=False, container=False,
                    )  # fmt: skip
            with gr.Row(elem_id="foot"):
                back = gr.Button("Back to the pair before", size="sm", elem_id="back", min_width=80)
                gr.HTML(hints(), elem_id="hints", padding=False)
        parts = [door, room, work, bar, ask, left, right, shown, reason, note, back]
        wire = {"queue": False, "show_progress": "hidden", "api_visibility": "private"}
        page.load(lambda rater: opened(*desk.sign_in(rater)), [remembered], [remembered, *parts], **wire)
        for trigger in (enter.click, code.submit):
            trigger(lambda rater: opened(*desk.sign_in(rater)), [code], [remembered, *parts], **wire)
        leave.click(lambda: opened("", signed_out()), None, [remembered, *parts], **wire)
        back.click(lambda rater, number: updates(desk.back(rater, number)), [remembered, shown], parts, **wire)
        for choice, button in chosen:
            button.click(
                lambda rater, number, why, choice=choice: updates(desk.vote(rater, number, choice, why)),
                [remembered, shown, reason], parts, **wire,
            )  # fmt: skip
    return page


def opened(rater: str, view: View) -> list[Any]:
    """What signing in changes: the code that the browser remembers, and all that is shown."""
    return [rater, *updates(view)]


def updates(view: View) -> list[Any]:
    """A view as what gradio sets, in the order of `parts` in `build`."""
    here = lambda yes: gr.update(visible=yes)  # noqa: E731
    return [
        here(not view.signed_in), here(view.signed_in), here(view.signed_in and not view.finished),
        view.bar, view.prompt, view.left, view.right, view.shown, view.reason, view.note, here(view.can_go_back),
    ]  # fmt: skip


def hints() -> str:
    """The keys, and the guideline once more."""
    keys = (("1", "–"), ("4", "choose"), ("R", "give a reason"), ("Esc", "leave the reason"), ("Z", "back"))
    shown = "".join(f"<span><kbd>{key}</kbd> {what}</span>" for key, what in keys)
    return f'<div class="keys">{shown}</div><details><summary>How to judge</summary><p>{GUIDE}</p></details>'


def application(study: Study) -> FastAPI:
    """The page as an ASGI application that sends nothing elsewhere and serves nothing else."""
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None)

    @app.middleware("http")
    async def only_the_page(request: Request, call_next: Any) -> Any:
        path = request.url.path
        if not (path in OPEN_EXACTLY or path.startswith(OPEN)):  # no files, no uploads, no API description
            return PlainTextResponse("not here", status_code=404)
        response = await call_next(request)
        response.headers["Content-Security-Policy"] = POLICY
        response.headers["Referrer-Policy"] = "no-referrer"
        if path in ("/", "/config"):
            response.headers["Cache-Control"] = "no-store"
        return response

    font = ["ui-sans-serif", "system-ui", "sans-serif"]
    mono = ["ui-monospace", "monospace"]
    theme = gr.themes.Base(primary_hue="slate", neutral_hue="slate", font=font, font_mono=mono)
    return gr.mount_gradio_app(
        app, build(study), path="", theme=theme, css=(HERE / "page.css").read_text(), footer_links=[],
        head=(HERE / "head.html").read_text(), show_error=False, ssr_mode=False, pwa=False,
        mcp_server=False, enable_monitoring=False, run_history=False,
    )  # fmt: skip


def serve(study: Study, *, host: str = "127.0.0.1", port: int = 7860) -> None:
    """Serve the page until interrupted. Raises: ParameterError: the port is taken, or no such address."""
    import uvicorn

    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except (OSError, OverflowError) as error:
            raise ParameterError(f"cannot serve at {host}:{port}: {error}; choose --host and --port") from None
    print(f"rating page: http://{'localhost' if host == '127.0.0.1' else host}:{port}  (Ctrl-C stops it)", flush=True)
    uvicorn.run(application(study), host=host, port=port, log_level="warning")
