"""What is wrong with a piece of HTML, by rules about its elements.

    doctype, charset    true: there has to be one
    count, least        how many elements of a name there are, exactly or at least
    has, lacks          an element (or none) with this tag, these attributes and, with ``text``, this text or, with
                        ``label``, a label of this text that belongs to it
    texts               the texts of all elements of a name, in their order
    filled              every element of these names has a text
    blank               no element of these names shows a text
    labelled            true: a label belongs to every input, select and textarea
    alts                true: every image has an alternative text
    classes             an element of this name has all of these classes
    inside              every element of a name lies in one of another name
    within              every element of a name lies in one with all of these classes
    each                every element of a name has an element of each of these names in it
    cells               every row of a table has this many cells

Tags have to be closed in the right order; those that HTML lets a page leave out, such as ``</li>``, may be missing.
No element may have JavaScript in an attribute, such as "onclick".
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
    "optgroup",
}
_BLOCKS = (  # whose start ends an open paragraph (HTML, section 13.1.2.4)
    *("address", "article", "aside", "blockquote", "details", "div", "dl", "fieldset", "figcaption", "figure"),
    *("footer", "form", "h1", "h2", "h3", "h4", "h5", "h6", "header", "hr", "main", "menu", "nav", "ol", "p", "pre"),
    *("section", "table", "ul"),
)
_ROWS = ("td", "th", "tr", "thead", "tbody", "tfoot")
ENDED_BY: Mapping[str, Sequence[str]] = {  # the open elements that end where an element of this name starts
    **dict.fromkeys(_BLOCKS, ("p",)),
    **dict.fromkeys(("thead", "tbody", "tfoot"), _ROWS),
    **dict.fromkeys(("dt", "dd"), ("dt", "dd", "p")),
    **dict.fromkeys(("td", "th"), ("td", "th", "p")),
    "tr": ("td", "th", "tr", "p"),
    "li": ("li", "p"),
    "option": ("option",),
    "optgroup": ("option", "optgroup"),
    "body": ("head",),
}
CONTROLS = ("input", "select", "textarea")
UNLABELLED = ("hidden", "submit", "button", "reset", "image")  # types of inputs that need no label
FORBIDDEN = ("script", "style")
UNSEEN = ("title", "desc")  # of an svg: a name for screen readers
READERS_ONLY = "sr-only"  # the class of Tailwind for a text that only screen readers read


@dataclass(slots=True)
class Element:
    """An element with its attributes, those around it, the text in it, and the part of the text that is shown.

    The text of a label is without that of a control in it, such as the options of a select.
    """

    tag: str
    attributes: Mapping[str, str]
    around: tuple[Element, ...]
    texts: list[str] = field(default_factory=list)
    shown: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)  # the texts of the labels that belong to it
    classes: frozenset[str] = frozenset()
    unseen: bool = False  # whether its text is not shown
    in_control: bool = False  # whether it is a control, or lies in one

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    @property
    def needs_label(self) -> bool:
        return self.tag in CONTROLS and self.attributes.get("type") not in UNLABELLED

    def matches(self, wanted: Mapping[str, str]) -> bool:
        """Whether it has a tag, attributes and a text; an attribute that is wanted as "" may have any value."""
        for name, value in wanted.items():
            if name == "tag":
                fits = self.tag == value
            elif name == "text":
                fits = self.text == value
            elif name == "label":
                fits = value in self.labels
            elif name == "lang":  # en-US is English
                fits = self.attributes.get(name, "").casefold().split("-")[0] == value
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
        while self._open and self._open[-1].tag in ENDED_BY.get(tag, ()):
            self._open.pop()
        attributes = {name: value or "" for name, value in reversed(attrs)}  # of two of a name, the first counts
        element = Element(tag, attributes, tuple(self._open), classes=frozenset(attributes.get("class", "").split()))
        outer = self._open[-1] if self._open else None
        hidden = tag in UNSEEN or READERS_ONLY in element.classes
        element.unseen = hidden or (outer is not None and outer.unseen)
        element.in_control = tag in CONTROLS or (outer is not None and outer.in_control)
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
            if element.tag != "label" or not self._open[-1].in_control:
                element.texts.append(data)
            if not self._open[-1].unseen:
                element.shown.append(data)

    def handle_decl(self, decl: str) -> None:
        self.doctype = self.doctype or decl.casefold().split()[:2] == ["doctype", "html"]

    def end(self) -> None:
        self.close()
        if left := [element.tag for element in self._open if element.tag not in MAY_STAY_OPEN]:
            self.fault = self.fault or f"{left[-1]} is not closed"
        self._label()

    def _label(self) -> None:
        """Give each control the labels that name it by its id, or that it is the first control of."""
        # A label belongs to the first of two elements with the same id.
        named = {name: each for each in reversed(self.elements) if (name := each.attributes.get("id"))}
        used: set[int] = set()
        for each in self.elements:
            target = named.get(each.attributes.get("for", ""))
            if each.tag == "label" and each.text and target is not None:
                target.labels.append(each.text)
            for label in each.around if each.tag in CONTROLS else ():
                if label.tag == "label" and not label.attributes.get("for") and id(label) not in used and label.text:
                    used.add(id(label))
                    each.labels.append(label.text)


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
    if handlers := [name for element in parser.elements for name in element.attributes if _is_script(element, name)]:
        return f"it has JavaScript in {handlers[0]}"
    broken = (BROKEN[name](wanted, parser) for name, wanted in rules.items())
    return next((why for why in broken if why is not None), None)


def _is_script(element: Element, name: str) -> bool:
    return name.startswith("on") or element.attributes[name].strip().casefold().startswith("javascript:")


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


def _texts(wanted: Mapping[str, Sequence[str]], page: MarkupParser) -> str | None:
    for tag, texts in wanted.items():
        found = [element.text for element in page.elements if element.tag == tag]
        if found != texts:
            return f"the texts of the {tag} elements are {', '.join(found)}, not {', '.join(texts)}"
    return None


def _filled(wanted: Sequence[str], page: MarkupParser) -> str | None:
    return next((f"a {each.tag} has no text" for each in page.elements if each.tag in wanted and not each.text), None)


def _blank(wanted: Sequence[str], page: MarkupParser) -> str | None:
    shown = (each for each in page.elements if each.tag in wanted and "".join(each.shown).strip())
    return next((f"a {each.tag} shows a text" for each in shown), None)


def _classes(wanted: Mapping[str, str], page: MarkupParser) -> str | None:
    for tag, names in wanted.items():
        if not any(element.tag == tag and set(names.split()) <= element.classes for element in page.elements):
            return f"no {tag} has the classes {names}"
    return None


def _inside(wanted: Mapping[str, str], page: MarkupParser) -> str | None:
    for inner, outer in wanted.items():
        if any(each.tag == inner and all(e.tag != outer for e in each.around) for each in page.elements):
            return f"{inner} is not in {outer}"
    return None


def _within(wanted: Mapping[str, str], page: MarkupParser) -> str | None:
    for inner, names in wanted.items():
        classes = set(names.split())
        if any(each.tag == inner and not any(classes <= e.classes for e in each.around) for each in page.elements):
            return f"{inner} is not in an element with the classes {names}"
    return None


def _each(wanted: Mapping[str, Sequence[str]], page: MarkupParser) -> str | None:
    inner = {(id(outer), each.tag) for each in page.elements for outer in each.around if outer.tag in wanted}
    for outer in page.elements:
        for tag in wanted.get(outer.tag, ()):
            if (id(outer), tag) not in inner:
                return f"a {outer.tag} has no {tag} in it"
    return None


def _cells(wanted: int, page: MarkupParser) -> str | None:
    cells = Counter(id(each.around[-1]) for each in page.elements if each.tag in ("td", "th") and each.around)
    counts = (cells[id(each)] for each in page.elements if each.tag == "tr")
    return next((f"a row has {count} cells, not {wanted}" for count in counts if count != wanted), None)


def _labelled(wanted: bool, page: MarkupParser) -> str | None:
    bare = (each for each in page.elements if each.needs_label and not each.labels)
    return next((f"no label belongs to {each.tag} {each.attributes.get('type', '')}".strip() for each in bare), None)


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
    "texts": _texts,
    "filled": _filled,
    "blank": _blank,
    "classes": _classes,
    "inside": _inside,
    "within": _within,
    "each": _each,
    "cells": _cells,
    "labelled": _labelled,
    "alts": _alts,
}
