"""The rating page in headless Chromium: mouse, keys, reload, two raters, two tabs; and never a model's name."""

import contextlib
import json
import shutil
import socket
import threading
import time
from collections import Counter

import pytest
from human_cases import NAMES, write_rows

from llamax.errors import ParameterError
from llamax.evaluation.human.page import Desk, plain, serve
from llamax.evaluation.human.plan import Design, make_plan, names_in
from llamax.evaluation.human.store import open_sheet, read_sheets

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
NASTY = "<script>window.hacked=1</script> ${1+1} {{value}} `x` \\ & <img src=x onerror='window.hacked=1'>"


def free_port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def served(study, port=None):
    """The page of `study` on this machine."""
    import uvicorn

    from llamax.evaluation.human.page import application

    port = port or free_port()
    server = uvicorn.Server(
        uvicorn.Config(
            application(study), host="127.0.0.1", port=port, log_level="warning", timeout_graceful_shutdown=1
        )
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)


@pytest.fixture(scope="module")  # its event loop would be in the way of other files' tests
def browser():
    sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed: no browser to drive")
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        pytest.skip(f"no browser here: none of {', '.join(BROWSERS)} is on the PATH")
    with sync_api.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield running
        running.close()


class Tab:
    """One page of one browser profile, and all that went over the wire."""

    def __init__(self, context, url):
        self.page = context.new_page()
        self.requests, self.bodies, self.problems = [], [], []
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("response", self._keep)
        self.page.on("pageerror", lambda error: self.problems.append(str(error)))
        self.page.set_default_timeout(30_000)
        self.page.goto(url)

    def _keep(self, response):
        if response.status >= 400:
            self.problems.append(f"{response.status} {response.url}")
        with contextlib.suppress(Exception):  # a redirect or a closed page has no body
            self.bodies.append(response.url + "\n" + response.text())

    def sign_in(self, code):
        self.page.locator("#code input, #code textarea").fill(code)
        self.page.locator("#enter").click()
        return self

    def at(self, done, total=12):
        """Wait until so many are rated."""
        self.page.locator("#bar .count").filter(has_text=f"{done} of {total} rated").wait_for()
        return self

    def shown(self):
        return tuple(self.page.locator(f"{part} .text").inner_text() for part in ("#prompt", "#left", "#right"))


def test_ten_pairs_by_mouse_and_keyboard_with_a_reload_in_the_middle(study, browser):
    with served(study) as url:
        tab = Tab(browser.new_context(viewport={"width": 1280, "height": 800}), url).sign_in("../ann")
        tab.page.locator("#note .alert").filter(has_text="A rater's code is").wait_for()
        tab.sign_in("Ann").at(0)
        keys = {"left": "1", "tie": "2", "both_bad": "3", "right": "4"}
        buttons = {"left": "#choose-left", "tie": "#choose-tie", "both_bad": "#choose-bad", "right": "#choose-right"}
        chosen, texts = ["left", "right", "tie", "both_bad", "right"] * 2, []
        for number, choice in enumerate(chosen):
            tab.at(number)
            texts.append(tab.shown())
            if number == 3:
                tab.page.keyboard.press("r")
                tab.page.keyboard.type("1 because 2 <b>&")  # digits typed as a reason are no votes
                tab.page.keyboard.press("Escape")
            if number == 5:
                tab.page.reload()
                tab.at(5)
                assert tab.shown() == texts[-1]
            if number % 2:
                tab.page.keyboard.press(keys[choice])
            else:
                tab.page.locator(buttons[choice]).click()
        tab.at(10)
        (sheet,) = read_sheets(study.folder, study.plan)
        assert [sheet.votes[n].choice for n in range(10)] == chosen and len(sheet.votes) == 10
        assert [sheet.votes[n].reason for n in range(10)] == [""] * 3 + ["1 because 2 <b>&"] + [""] * 6
        for number, (prompt, left, right) in enumerate(texts):
            vote = sheet.votes[number]
            n = vote.prompt[1:]
            assert prompt == f"Question {n}?"
            assert (left, right) == tuple(f"{'XY'[NAMES.index(name)]}-{n}" for name in (vote.left, vote.right))
        tab.page.keyboard.press("z")
        tab.page.locator("#note").filter(has_text="Pair 10 again: you chose “B is better”").wait_for()
        assert tab.shown() == texts[9]
        tab.page.keyboard.press("2")
        tab.page.locator("#note").filter(has_text="Changed.").wait_for()
        for done in (10, 11):
            tab.at(done).page.keyboard.press("1")
        tab.page.locator("#note .thanks").filter(has_text="All 12 pairs are rated").wait_for()
        (sheet,) = read_sheets(study.folder, study.plan)
        assert sheet.next is None and sheet.votes[9].choice == "tie" and sheet.votes[9].revision == 1
        assert tab.problems == []
        assert [other for other in tab.requests if not other.startswith(url)] == [], "the page asks nobody else"
        everything = "\n".join([*tab.bodies, tab.page.content()]).lower()
        assert "question 3?" in everything, "the bodies were really kept"
        assert [name for name in (*NAMES, str(study.folder).lower()) if name in everything] == []
        tab.page.context.close()


def test_two_raters_and_two_tabs_of_one(study, browser):
    with served(study) as url:
        ann, bob = browser.new_context(), browser.new_context()
        tabs = [Tab(ann, url).sign_in("ann").at(0), Tab(bob, url).sign_in("bob").at(0)]
        second = Tab(ann, url).at(0)  # the browser remembers the rater
        assert second.shown() == tabs[0].shown()
        for number in range(3):
            for tab, key in zip(tabs, "14", strict=True):
                tab.page.keyboard.press(key)
            for tab in tabs:
                tab.at(number + 1)
        second.page.keyboard.press("4")  # still shows the first pair, which has a vote
        second.page.locator("#note").filter(has_text="already rated").wait_for()
        second.at(3)
        assert second.shown() == tabs[0].shown()
        second.page.keyboard.press("2")
        second.at(4)
        sheets = {sheet.rater: sheet for sheet in read_sheets(study.folder, study.plan)}
        assert [sheets["ann"].votes[n].choice for n in range(4)] == ["left", "left", "left", "tie"]
        assert [sheets["bob"].votes[n].choice for n in range(3)] == ["right"] * 3 and len(sheets["bob"].votes) == 3
        second.page.locator("#leave").click()
        second.page.locator("#enter").wait_for()
        for context in (ann, bob):
            context.close()


@pytest.mark.slow
def test_a_page_that_lost_its_server_goes_on_when_it_is_back(study, browser):
    port, context = free_port(), browser.new_context()
    with served(study, port) as url:
        tab = Tab(context, url).sign_in("ann").at(0)
        tab.page.keyboard.press("1")
        tab.at(1)
    tab.page.keyboard.press("1")
    tab.page.get_by_text("Connection to the server was lost").wait_for()
    assert len(open_sheet(study.folder, study.plan, "ann").votes) == 1
    with served(study, port):
        tab.page.get_by_text("Connection to the server was lost").wait_for(state="detached")
        tab.at(1).page.keyboard.press("4")
        tab.at(2)
    votes = open_sheet(study.folder, study.plan, "ann").votes
    assert [votes[n].choice for n in range(2)] == ["left", "right"]
    context.close()


def test_text_is_shown_as_text_and_names_are_hidden(files, tmp_path, browser):
    _, ((one, _), (other, _)) = files
    prompts = write_rows(tmp_path / "nasty.jsonl", [{"id": "n", "prompt": [f"First {NASTY}", "Second?"]}])
    said = {one: ["a " + NASTY, f"I am {one.upper()}."], other: ["", "long word " * 900]}
    answers = [(n, write_rows(tmp_path / f"{n}-nasty.jsonl", [{"id": "n", "answer": a}])) for n, a in said.items()]
    study = make_plan(
        tmp_path / "s", answers, source=str(prompts), turns=2, design=Design(raters=2, rater_correlation=0)
    )
    with served(study) as url:
        tab = Tab(browser.new_context(viewport={"width": 390, "height": 844}), url).sign_in("ann").at(0, 1)
        texts = tab.page.locator(".scroll .text").all_inner_texts()
        assert f"First {NASTY}" in texts and f"a {NASTY}" in texts and "I am […]." in texts
        assert tab.page.evaluate("window.hacked") is None
        assert tab.page.get_by_text("(an empty answer)").is_visible()
        height, whole = tab.page.locator(".scroll", has_text="long word").evaluate(
            "at => [at.clientHeight, at.scrollHeight]"
        )
        assert height < 500 < whole, "a long answer scrolls"
        assert tab.page.evaluate("document.documentElement.scrollWidth") <= 390, "nothing hangs over a phone's edge"
        names = "\n".join([*tab.bodies, tab.page.content()]).lower()
        assert one not in names and other not in names
        tab.page.context.close()


def test_nothing_but_the_page_is_served(study):
    import httpx

    with served(study) as url, httpx.Client(base_url=url, trust_env=False) as client:
        root = client.get("/")
        assert "connect-src 'self'" in root.headers["content-security-policy"]
        assert root.headers["cache-control"] == "no-store"
        plan = study.folder / "plan.json"
        for path in (
            f"/gradio_api/file={plan}", f"/file={plan}", "/gradio_api/info", "/gradio_api/openapi.json", "/docs",
            "/openapi.json", "/gradio_api/upload", "/gradio_api/monitoring", "/monitoring", "/gradio_api/mcp/",
        ):  # fmt: skip
            assert client.get(path).status_code == 404, path
        assert client.post("/gradio_api/upload", files={"files": b"x"}).status_code == 404
        for page in (root.text, client.get("/config").text):
            assert [name for name in (*NAMES, str(study.folder)) if name in page] == []


class TestDesk:
    """What the page does, without a browser."""

    def test_a_click_on_what_was_shown_before_is_no_vote_on_what_is_shown_now(self, study):
        desk = Desk(study)
        code, view = desk.sign_in("ann")
        assert (code, view.shown) == ("ann", "0")
        after = desk.vote(code, view.shown, "left", "")
        double = desk.vote(code, view.shown, "right", "")
        assert after.shown == double.shown == "1" and "already rated" in double.note
        assert Counter(v.choice for v in open_sheet(study.folder, study.plan, "ann").votes.values()) == {"left": 1}

    @pytest.mark.parametrize(
        ("code", "shown", "choice"),
        [("ann", "99", "left"), ("ann", "-1", "left"), ("ann", "x", "left"), ("ann", "", "left"), ("ann", "0", "wins"),
         ("../x", "0", "left"), ("", "0", "left")],
    )  # fmt: skip
    def test_a_forged_vote_is_not_saved_and_says_nothing_of_this_side(self, study, code, shown, choice, capsys):
        desk = Desk(study)
        desk.sign_in("ann")
        view = desk.vote(code, shown, choice, "why")
        assert "This vote was not saved" in view.note
        assert not any(part in str(view) for part in (*NAMES, str(study.folder)))
        assert open_sheet(study.folder, study.plan, "ann").votes == {}
        assert "human-eval: rater" in capsys.readouterr().err

    def test_damage_is_told_to_the_server_not_to_the_page(self, study, capsys):
        desk = Desk(study)
        code, view = desk.sign_in("ann")
        desk.vote(code, view.shown, "left", "")
        path = study.folder / "raters" / "ann.jsonl"
        path.write_text(path.read_text().replace('"item"', '"itim"'))
        code, view = desk.sign_in("ann")
        assert code == "" and not view.signed_in and "cannot be opened" in view.note
        assert str(study.folder) not in str(view) and "ann.jsonl:2" in capsys.readouterr().err

    def test_back_steps_through_earlier_pairs_and_keeps_their_reasons(self, study):
        desk = Desk(study)
        code, view = desk.sign_in("ann")
        for number in range(3):
            view = desk.vote(code, view.shown, "left", f"why {number}")
        back = desk.back(code, view.shown)
        assert (back.shown, back.reason) == ("+2", "why 2")
        assert (desk.back(code, back.shown).shown, desk.back(code, "+0").shown) == ("+1", "3")
        changed = desk.vote(code, "+1", "right", "better so")
        assert changed.shown == "3"
        votes = open_sheet(study.folder, study.plan, "ann").votes
        assert [votes[n].choice for n in range(3)] == ["left", "right", "left"]


def test_plain_text_survives_gradios_templates(study):
    shown = plain(NASTY, names_in(study.plan))
    assert not set("<>${}`\\") & set(shown)


def test_names_as_the_gate_has_them_are_no_words_of_a_text(files, tmp_path):
    prompts, answers = files
    roles = zip(("candidate", "current"), answers, strict=True)
    named = [(f"evaluation/smol-s0-1234abcd:{role}", file) for role, (_, file) in roles]
    study = make_plan(tmp_path / "named", named, source=str(prompts), design=Design(raters=2, rater_correlation=0.0))
    text = "The current president was a candidate."
    assert plain(text, names_in(study.plan)) == text
    assert "1234abcd" not in plain(f"I am {named[0][0]}", names_in(study.plan))


def test_a_port_that_is_taken_is_one_line(study):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ParameterError, match=r"cannot serve at 127\.0\.0\.1:\d+: .*choose --host and --port"):
            serve(study, port=taken.getsockname()[1])


def test_rater_files_hold_no_answers(study):
    desk = Desk(study)
    code, view = desk.sign_in("ann")
    desk.vote(code, view.shown, "left", "")
    rows = [json.loads(line) for line in (study.folder / "raters" / "ann.jsonl").read_text().splitlines()]
    assert "X-" not in str(rows) and "Question" not in str(rows)
