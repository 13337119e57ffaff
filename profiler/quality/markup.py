"""What is wrong with a piece of HTML, by rules about its elements.

    doctype, charset    true: there has to be one
    count, least        how many elements of a name there are, exactly or at least
    has, lacks          an element (or none) with this tag, these attributes and, with ``text``, this text
    labelled            true: a label belongs to every input, select and textarea
    alts                true: every image has an alternative text
    classes             an element of this name ("any": of any) has all of these classes
    inside              every element of a name lies in one of another name

Tags have to be closed in the right order; those that HTML lets a page leave out, such as ``</li>``, may be missing.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from html.parser import HTMLParser
from typing import Any

MAX_DEPTH = 200
_ENDLESS = re.compile(r"<[^>]{5000}")  # for which Python's parser takes quadratic time
VOID = {"area", "base", "br", "col", "embed", "hr", "img", "input", "link", "meta", "source", "track", "wbr"}
MAY_STAY_OPEN = {
    *("li", "p", "td", "th", "tr", "option", "thead", "tbody", "tfoot", "dt", "dd", "html", "head", "body"),
}
CONTROLS = ("input", "select", "textarea")
UNLABELLED = ("hidden", "submit", "button", "reset", "image")  # types of inputs that need no label
FORBIDDEN = ("script", "style")


@dataclass(slots=True)
class Element:
    """An element with its attributes, the names of those around it, and the text in it."""

    tag: str
    attributes: Mapping[str, str]
    around: tuple[Element, ...]
    texts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def matches(self, wanted: Mapping[str, str]) -> bool:
        """Whether it has a tag, attributes and a text; an attribute that is wanted as "" may have any value."""
        for name, value in wanted.items():
            if name == "tag":
                fits = self.tag == value
            elif name == "text":
                fits = self.text == value
            else:
                fits = name in self.attributes and value in ("", self.attributes[name].strip())
            if not fits:
                return False
        return True


class MarkupParser(HTMLParser):
    """Collects the elements, and the first fault in their order."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[Element] = []
        self.fault: str | None = None
        self.doctype = False
        self._open: list[Element] = []

    @property
    def counts(self) -> Counter[str]:
        """How many elements of each name there are."""
        return Counter(element.tag for element in self.elements)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if len(self._open) > MAX_DEPTH:
            self.fault = self.fault or "it is nested too deeply"
            return
        attributes = {name: value or "" for name, value in reversed(attrs)}  # of two of a name, the first counts
        element = Element(tag, attributes, tuple(self._open))
        self.elements.append(element)
        if tag not in VOID:
            self._open.append(element)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID and self._open and self._open[-1].tag == tag:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in VOID:
            return
        while self._open and self._open[-1].tag != tag and self._open[-1].tag in MAY_STAY_OPEN:
            self._open.pop()
        if not self._open or self._open[-1].tag != tag:
            still = f" while {self._open[-1].tag} is open" if self._open else ""
            self.fault = self.fault or f"</{tag}> closes nothing{still}"
        else:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        for element in self._open:
            element.texts.append(data)

    def handle_decl(self, decl: str) -> None:
        self.doctype = self.doctype or decl.casefold().split()[:2] == ["doctype", "html"]

    def end(self) -> None:
        self.close()
        if left := [element.tag for element in self._open if element.tag not in MAY_STAY_OPEN]:
            self.fault = self.fault or f"{left[-1]} is not closed"


def wrong(rules: Mapping[str, Any], text: str) -> str | None:
    """The first rule that ``text`` breaks; None if it keeps to all of them."""
    if _ENDLESS.search(text):
        return "a tag does not end"
    parser = MarkupParser()
    parser.feed(text)
    parser.end()
    if not parser.elements:
        return "there is no HTML"
    if parser.fault is not None:
        return parser.fault
    if scripts := [element.tag for element in parser.elements if element.tag in FORBIDDEN]:
        return f"it has a {scripts[0]} element"
    broken = (BROKEN[name](wanted, parser) for name, wanted in rules.items())
    return next((why for why in broken if why is not None), None)


def _doctype(wanted: bool, page: MarkupParser) -> str | None:
    return None if page.doctype else "there is no doctype"


def _charset(wanted: bool, page: MarkupParser) -> str | None:
    stated = [element.attributes.get("charset", "").casefold() for element in page.elements]
    return None if "utf-8" in stated else "there is no UTF-8 charset"


def _count(wanted: Mapping[str, int], page: MarkupParser) -> str | None:
    counts = page.counts
    return next((f"{counts[tag]} {tag} elements, not {n}" for tag, n in wanted.items() if counts[tag] != n), None)


def _least(wanted: Mapping[str, int], page: MarkupParser) -> str | None:
    counts = page.counts
    few = (f"{counts[tag]} {tag} elements, not at least {n}" for tag, n in wanted.items() if counts[tag] < n)
    return next(few, None)


def _has(wanted: Sequence[Mapping[str, str]], page: MarkupParser) -> str | None:
    absent = (each for each in wanted if not any(element.matches(each) for element in page.elements))
    return next((f"there is no {_words(each)}" for each in absent), None)


def _lacks(wanted: Sequence[Mapping[str, str]], page: MarkupParser) -> str | None:
    present = (each for each in wanted if any(element.matches(each) for element in page.elements))
    return next((f"there is {_words(each)}" for each in present), None)


def _words(wanted: Mapping[str, str]) -> str:
    """``input type=email required``."""
    words = {name: f"{name}={value}" if value else name for name, value in wanted.items()}
    return " ".join((words | {"tag": wanted["tag"]}).values())


def _classes(wanted: Mapping[str, str], page: MarkupParser) -> str | None:
    for tag, names in wanted.items():
        alike = [element for element in page.elements if tag in ("any", element.tag)]
        if not any(set(names.split()) <= set(each.attributes.get("class", "").split()) for each in alike):
            return f"no {'element' if tag == 'any' else tag} has the classes {names}"
    return None


def _inside(wanted: Mapping[str, str], page: MarkupParser) -> str | None:
    for inner, outer in wanted.items():
        if any(each.tag == inner and all(e.tag != outer for e in each.around) for each in page.elements):
            return f"{inner} is not in {outer}"
    return None


def _labelled(wanted: bool, page: MarkupParser) -> str | None:
    labels = {each.attributes.get("for") for each in page.elements if each.tag == "label" and each.text} - {None, ""}
    for each in page.elements:
        if each.tag not in CONTROLS or each.attributes.get("type") in UNLABELLED:
            continue
        wrapped = any(outer.tag == "label" and outer.text for outer in each.around)
        if not wrapped and each.attributes.get("id") not in labels:
            return f"no label belongs to {each.tag} {each.attributes.get('type', '')}".strip()
    return None


def _alts(wanted: bool, page: MarkupParser) -> str | None:
    bare = any(each.tag == "img" and not each.attributes.get("alt", "").strip() for each in page.elements)
    return "an image has no alternative text" if bare else None


BROKEN: Mapping[str, Callable[[Any, MarkupParser], str | None]] = {  # how each rule is broken; None: it is not
    "doctype": _doctype,
    "charset": _charset,
    "count": _count,
    "least": _least,
    "has": _has,
    "lacks": _lacks,
    "classes": _classes,
    "inside": _inside,
    "labelled": _labelled,
    "alts": _alts,
}
