"""From the tree of paper.md to a tree in which every name stands for its value, and every number has a source.

    [nano:full.chat.overall.gain]{.value show=ci digits=1}     a value of the pinned runs
    [nano:parameters.train.epochs]{.value}                     a fact about them
    [llamax-7b.mmlu]{.quoted}                                  a number of quoted.yaml, with its citation
    [tuning-buys]{.claim}                                      a sentence of claims.yaml, with its evidence
    @fig:gains @tbl:nano @sec:method                           a reference
    # Results {.results}                                       a section without hand-typed numbers

A class of another name, and a name that stands in the text without its class, are faults: they would be printed.
Faults are collected in the source with their line; nothing is raised before all of them are known.
"""

import re
from pathlib import Path
from typing import Any

from llamax.errors import LlamaxError, PaperError
from llamax.papers import expand, pandoc, show
from llamax.papers.claims import Verdict, judge_all
from llamax.papers.evidence import Evidence
from llamax.papers.pandoc import Node, plain, rewrite, words
from llamax.papers.source import Lines, Source
from llamax.papers.typed import typed_numbers

FACTS = ("parameters.", "cost.", "notes.", "provenance.")
BOUND = ("value", "quoted", "claim")
REFERENCES = ("fig:", "tbl:", "sec:")
CLASSES = {"Span": BOUND, "Div": ("claims", "expanded"), "Header": ("results", "unnumbered", "unlisted")}
BLOCK_HEAD = re.compile(r"\s*(`{3,}\s*)?\{[^}]*\.(table|figure|claims)\b")
RESULTS_META = ("title", "subtitle", "abstract")  # what obeys the rules of a results section
EXPECTED = (LlamaxError, ArithmeticError, LookupError, TypeError, ValueError)


def bind(source: Source, evidence: Evidence, work: Path) -> Node:
    """The bound tree of the paper; figures are drawn into `work`. Faults are added to `source.faults`."""
    try:
        tree = pandoc.parse(source.text)
    except PaperError as error:
        raise PaperError(f"papers/{source.version}/paper.md:1: {error}") from None
    check_front_matter(tree["meta"], source)
    verdicts = judge_all(source, evidence)
    tree["blocks"] = expand_blocks(tree["blocks"], source, evidence, verdicts, work)
    labels = number_labels(tree["blocks"], source)
    return Binder(source, evidence, verdicts, labels).document(tree)


def check_front_matter(meta: dict, source: Source) -> None:
    """Note a missing title or abstract, and an author who has no name."""
    for key, kinds in (("title", ("MetaInlines",)), ("abstract", ("MetaInlines", "MetaBlocks"))):
        if meta.get(key, {}).get("t") not in kinds or not plain(meta[key]).strip():
            source.fault(max(1, source.line(f"{key}:")), f"the front matter of the paper gives no {key}")
    author = meta.get("author", {"t": "MetaList", "c": []})
    for one in author["c"] if author["t"] == "MetaList" else [author]:
        if not plain(one["c"].get("name", "") if one["t"] == "MetaMap" else one).strip():
            source.fault(source.line("author:"), "an author has no name: give each as {name: …, affiliation: …}")


def expand_blocks(
    blocks: list, source: Source, evidence: Evidence, verdicts: dict[str, Verdict], work: Path
) -> list[Node]:
    """Replace `.table`, `.figure` and `.claims` blocks by what they stand for, in a div that knows its line."""
    lines, parts = Lines(source.text), []

    def change(node: Node) -> list[Node] | None:
        (label, classes, _), content = node["c"] if node["t"] in ("CodeBlock", "Div") else (("", [], []), "")
        kind = next((name for name in ("table", "figure", "claims") if name in classes), None)
        if kind is None:
            return None
        line = lines.jump(content) if kind != "claims" else source.line(".claims")
        try:
            if kind == "claims":
                markdown = "\n".join(f"{i}. [{name}]{{.claim}}" for i, name in enumerate(verdicts, 1))
            else:
                markdown = expand.expand(kind, label, content, source, evidence, work)
        except EXPECTED as error:
            source.fault(line, f"{kind} {label}: {error}" if isinstance(error, LlamaxError) else f"{label}: {error!r}")
            return []
        parts.append(f"::: {{.expanded line={line}}}\n\n{markdown}\n\n:::\n")
        return [{"t": "Slot", "c": len(parts) - 1}]

    blocks = rewrite(blocks, change)
    expanded = pandoc.parse("\n".join(parts))["blocks"]
    return rewrite(blocks, lambda node: [expanded[node["c"]]] if node["t"] == "Slot" else None)


def number_labels(blocks: list, source: Source) -> dict[str, str]:
    """Label -> what a reference to it says: Figure 1, Table 2, Section 3.1, counted in reading order."""
    labels: dict[str, str] = {}
    counts, section = {"Figure": 0, "Table": 0}, [0, 0, 0]

    def count(node: Node) -> None:
        if node["t"] in counts:
            counts[node["t"]] += 1
            add(node["c"][0][0], f"{node['t']} {counts[node['t']]}")
        elif node["t"] == "Header" and "unnumbered" not in node["c"][1][1]:
            level = node["c"][0]
            if level > len(section):
                title = plain(node["c"][2])
                source.fault(source.line(title), f"heading {title!r}: three levels are numbered; add .unnumbered")
                return
            section[level - 1 :] = [section[level - 1] + 1, 0, 0][: 4 - level]
            add(node["c"][1][0], "Section " + ".".join(map(str, section[:level])))

    def add(label: str, text: str) -> None:
        if label in labels:
            source.fault(source.line(f"#{label}"), f"label {label!r} is given twice")
        labels[label] = text

    rewrite(blocks, count)
    return labels


class Binder:
    """Walks the tree in reading order: binds spans, resolves references, and watches for numbers typed by hand."""

    def __init__(self, source: Source, evidence: Evidence, verdicts: dict[str, Verdict], labels: dict[str, str]):
        self.source, self.evidence, self.verdicts, self.labels = source, evidence, verdicts, labels
        self.lines = Lines(source.text)
        self.results = False  # inside a section that may hold no typed number
        self.fixed: int | None = None  # line of the block that was expanded, for what is not in the source as it is
        self.before = ""
        self.quoted_here: set[str] = set()  # sources already named in this paragraph or table

    def document(self, tree: Node) -> Node:
        """The bound tree. Title and abstract obey the rules of a results section."""
        meta = {}
        for key, value in tree["meta"].items():
            self.results = key in RESULTS_META
            self.lines.cursor = 0
            self.lines.jump(f"{key}:")
            meta[key] = rewrite([value], self.node)[0]
        self.lines.cursor, level = 0, 0
        self.lines.jump("\n---\n")
        blocks: list[Node] = []
        for block in tree["blocks"]:
            if block["t"] == "Header" and (not level or block["c"][0] <= level):
                level = block["c"][0] if "results" in block["c"][1][1] else 0
            self.results = level > 0
            self.quoted_here.clear()
            blocks += rewrite([block], self.node)
        return {**tree, "meta": meta, "blocks": blocks}

    def node(self, node: Node) -> list[Node] | None:
        """What replaces one node, or None to go on inside."""
        if node["t"] in ("Para", "Plain", "Header"):
            self.before = ""  # a new text: what stood before it numbers nothing in it
        if node["t"] in CLASSES and (unknown := self.unknown_classes(node)):
            valid = ", ".join(f".{name}" for name in CLASSES[node["t"]] if name != "expanded")
            self.source.fault(self.line(unknown[0]), f"unknown class .{unknown[0]}: valid here: {valid}")
        handler = getattr(self, f"on_{node['t'].lower()}", None)
        return handler(node) if handler else None

    def unknown_classes(self, node: Node) -> list[str]:
        """The classes of a span, div or heading that mean nothing to a paper."""
        _, classes, _ = node["c"][1] if node["t"] == "Header" else node["c"][0]
        return [name for name in classes if name not in CLASSES[node["t"]]]

    def on_str(self, node: Node) -> list[Node]:
        """A word: in a results section it is no number, unless it is part of a name."""
        line = self.line(node["c"])
        if name := self.unbound(node["c"]):
            self.source.fault(line, f"{name!r} would be printed as it is: bind it, as in [{name}]{{.value}}")
        elif node["c"].startswith(":::"):
            self.source.fault(
                line, "a div that pandoc does not read: write ::: {.claims} and ::: on lines of their own"
            )
        else:
            self.check(node["c"], line)
        return [node]

    def unbound(self, text: str) -> str:
        """A name in `text` that stands for a value, a quoted number or a claim; empty when there is none."""
        aliases = "|".join(map(re.escape, self.source.lock.runs))
        if found := re.search(rf"\b({aliases}):\w[\w.-]*" if aliases else r"(?!)", text):
            return found[0].rstrip(".")
        names = re.findall(r"\[([^][]+)\]", text)
        return next((name for name in names if name in self.source.quoted or name in self.source.claims), "")

    def on_code(self, node: Node) -> list[Node]:
        line = self.line(node["c"][1])
        self.check_block_head(node["c"][1], line)
        self.check(node["c"][1], line)
        return [node]

    def on_orderedlist(self, node: Node) -> None:
        """A list's first number is typed by hand unless it is 1."""
        first = node["c"][0][0]
        if self.results and first != 1:
            self.source.fault(self.line(str(first)), f"hand-typed number {first}: a list among results begins with 1")

    def on_math(self, node: Node) -> list[Node]:
        """A formula may have indices and exponents, and no other digits, in a results section."""
        line = self.line(node["c"][1])
        text = "".join(character if character not in "{}\\" else " " for character in node["c"][1])
        if self.results and any(typed_numbers(word) for word in text.split() if not word.startswith(("_", "^"))):
            self.source.fault(line, f"hand-typed number in the formula ${node['c'][1]}$: bind it by name")
        return [node]

    def on_rawinline(self, node: Node) -> list[Node]:
        self.source.fault(
            self.line(node["c"][1]), "raw code is not rendered alike in the three formats: write Markdown"
        )
        return []

    on_rawblock = on_rawinline

    def on_codeblock(self, node: Node) -> list[Node]:
        line = self.lines.jump(node["c"][1])
        self.lines.cursor += len(node["c"][1])
        self.check_block_head(node["c"][1], line)
        if node["c"][0][0].startswith(REFERENCES):
            self.source.fault(line, f"a block #{node['c'][0][0]} that is neither .table nor .figure")
        if self.results:
            self.source.fault(line, "a code block in a results section: bind a table or a figure by name")
        return [node]

    def check_block_head(self, text: str, line: int) -> None:
        """Note the head of a block that pandoc took for code."""
        if head := BLOCK_HEAD.match(text):
            kind, example = head[2], {"table": "tbl:name", "figure": "fig:name"}.get(head[2], "")
            self.source.fault(
                line, f"a .{kind} block that pandoc does not read: write {{.{kind} #{example}}} behind ```"
            )

    def on_image(self, node: Node) -> list[Node]:
        if self.fixed is None:
            self.source.fault(self.line(node["c"][2][0]), "an image is not drawn from results: use a .figure block")
        attributes, alternative, target = node["c"]
        return [{"t": "Image", "c": [attributes, rewrite(alternative, self.node), target]}]

    def on_note(self, node: Node) -> list[Node]:
        """A footnote stands elsewhere in the source: it is walked with the cursor there."""
        cursor, self.lines.cursor = self.lines.cursor, 0
        long = max(plain(node["c"]).split(), key=len, default="")
        self.lines.jump(long)
        self.lines.cursor = max(0, self.lines.cursor - 200)
        bound = rewrite(node["c"], self.node)
        self.lines.cursor = cursor
        return [{"t": "Note", "c": bound}]

    def on_div(self, node: Node) -> list[Node] | None:
        """What a block was expanded to is walked with that block's line."""
        (_, classes, attributes), content = node["c"]
        if "expanded" not in classes:
            return None
        self.fixed = int(dict(attributes)["line"])
        bound = rewrite(content, self.node)
        self.fixed = None
        return bound

    def on_cite(self, node: Node) -> list[Node]:
        """A citation of refs.bib, or a reference to a figure, table or section, with the words around it."""
        bound: list[Node] = []
        citations: list[Node] = []
        for cited in node["c"][0]:
            name = cited["citationId"]
            before = rewrite(cited["citationPrefix"], self.node)
            line = self.line(f"@{name}")
            after = rewrite(cited["citationSuffix"], self.node)
            if name.startswith(REFERENCES):
                if name not in self.labels:
                    self.source.fault(line, f"unknown reference @{name}: there are {', '.join(self.labels)}")
                text = self.labels.get(name, "?").replace(" ", "\N{NO-BREAK SPACE}")
                link = {"t": "Link", "c": [["", [], []], words(text), [f"#{name}", ""]]}
                bound += [{"t": "Space"}, *before, *([{"t": "Space"}] if before else []), link, *after]
                continue
            citations.append({**cited, "citationPrefix": before, "citationSuffix": after})
            if name not in self.source.citations:
                self.source.fault(line, f"missing citation @{name}: not in refs.bib")
        if bound and citations:
            self.source.fault(line, f"@{name}: give references and citations brackets of their own")
        return bound[1:] if bound else [{"t": "Cite", "c": [citations, node["c"][1]]}]

    def on_span(self, node: Node) -> list[Node] | None:
        """A span of a bound kind becomes the text of its value."""
        (label, classes, attributes), content = node["c"]
        kind = next((kind for kind in BOUND if kind in classes), None)
        if kind is None:
            if not label and not classes:
                self.source.fault(self.line(plain(content)), f"[{plain(content)}] has no class: give it one of {BOUND}")
            return None
        name, options = plain(content), dict(attributes)
        line = self.line(name)
        try:
            if unknown := options.keys() - {"show", "digits"}:
                raise PaperError(f"unknown option {min(unknown)!r} of {name!r}: valid: show, digits")
            inlines = getattr(self, f"bound_{kind}")(name, options)
        except EXPECTED as error:
            self.source.fault(line, str(error) if isinstance(error, LlamaxError) else f"{name!r}: {error!r}")
            return words("?")
        self.before = ""
        return [{"t": "Span", "c": [["", [kind], [["title", name]]], inlines]}]

    def bound_value(self, name: str, options: dict[str, str]) -> list[Node]:
        """A metric or a fact of the pinned runs."""
        digits = self.digits(name, options.get("digits"))
        path = name.partition(":")[2]
        if path == "runs" or path.startswith(FACTS):
            return words(show.fact(self.evidence.fact(name), options.get("show", "value"), digits))
        return words(show.show(self.evidence.value(name), options.get("show", "ci"), digits))

    def digits(self, name: str, text: str | None) -> int | None:
        """The option `digits`. Raises: PaperError: not a small whole number."""
        if text is None:
            return None
        if not re.fullmatch(r"[0-9]{1,2}", text) or int(text) > show.MOST_DIGITS:
            raise PaperError(f"digits={text} of {name!r}: give a whole number from 0 to {show.MOST_DIGITS}")
        return int(text)

    def bound_quoted(self, name: str, _options: dict[str, str]) -> list[Node]:
        """A number from elsewhere, in italics and with its source, so that nobody takes it for ours.

        In one paragraph or table the source is named once; further numbers from it say `quoted ibid.`
        """
        if name not in self.source.quoted:
            raise PaperError(f"unknown quoted number {name!r}: quoted.yaml has {', '.join(self.source.quoted)}")
        quote = self.source.quoted[name]
        number = [{"t": "Emph", "c": words(str(quote.value))}, {"t": "Space"}]
        if quote.source in self.quoted_here:
            return number + words("(quoted ibid.)")
        self.quoted_here.add(quote.source)
        cited: dict[str, Any] = {"citationId": quote.source, "citationPrefix": [*words("quoted from"), {"t": "Space"}]}
        cited |= {
            "citationSuffix": [],
            "citationMode": {"t": "NormalCitation"},
            "citationNoteNum": 0,
            "citationHash": 0,
        }
        return [*number, {"t": "Cite", "c": [[cited], words("?")]}]

    def bound_claim(self, name: str, _options: dict[str, str]) -> list[Node]:
        """A claim's sentence and its evidence; one that does not hold says so."""
        if name not in self.source.claims:
            raise PaperError(f"unknown claim {name!r}: claims.yaml has {', '.join(self.source.claims)}")
        if name not in self.verdicts:
            return words("?")
        verdict = self.verdicts[name]
        sentence = " ".join(verdict.claim.sentence.split()).rstrip(".")
        inlines = words(f"{sentence} ({verdict.evidence()}).")
        refuted = [{"t": "Strong", "c": words("Not supported:")}, {"t": "Space"}]
        return inlines if verdict.claim.holds else refuted + inlines

    def line(self, word: str) -> int:
        """The line of the next `word`; of the expanded block while inside one."""
        return self.lines.at(word) if self.fixed is None else self.fixed

    def check(self, text: str, line: int) -> None:
        """Note a number typed by hand in a results section."""
        if self.results:
            for typed in typed_numbers(text, self.before):
                self.source.fault(line, f"hand-typed number {typed!r} among results: bind it by name, or quote it")
        self.before = (text.split() or [""])[-1]
