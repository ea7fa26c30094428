"""An encoding's docstring as its page says it: what is needed to understand it apart from notes, options and refusals; formulas
as LaTeX, which the site turns into MathML; options as a list, papers as links."""

from __future__ import annotations

import inspect
import re

# Formulas that a paragraph opens with; others are indented.
_OPENS = re.compile(r"(\w+\(i, [j·]\)|base'|x_p) [=+] ")
_NEXT = re.compile(r"\S{1,12}(?: [+-] \d\S*)? = |\w < \w$")
_SECTION = re.compile(r"(Options|Raises|Published):\n")


def parts(text: str) -> dict[str, str]:
    """A docstring in parts, each as Markdown: `sentence`, what it is; `source`, whose it is; `formula`, the formula with what
    leads up to it and ends its sentence, or the next paragraph where there is none; `Options`, `Raises` and `Published`; and
    `notes`, the rest. A part that there is not is empty."""
    blocks = [block for block in re.split(r"\n\s*\n", inspect.cleandoc(text)) if block.strip()]
    found = {"sentence": "", "source": "", "formula": "", "notes": "", "Options": "", "Raises": "", "Published": ""}
    for block in [block for block in blocks if _SECTION.match(block)]:
        blocks.remove(block)
        head, _, rest = block.partition("\n")
        found[head[:-1]] = linked(" ".join(rest.split())) if head == "Published:" else _items(rest.split("\n"))
    first, *blocks = [" ".join(blocks[0].split()), *blocks[1:]]
    sentence, *source = re.split(r"\. (?=\S+ (?:et al\.|\d{4}))", first, maxsplit=1)
    end = next((n for n, block in enumerate(blocks) if _is_formula(block)), 0) + 1
    while end < len(blocks) and (_is_formula(blocks[end]) or blocks[end - 1].rstrip()[-1] in ",:"):
        end += 1
    return found | {
        "sentence": linked(sentence.rstrip(".") + "."),
        "source": linked("".join(source)),
        "formula": "\n\n".join(map(_markdown, blocks[:end])),
        "notes": "\n\n".join(map(_markdown, blocks[end:])),
    }


def _is_formula(block: str) -> bool:
    return block.startswith("    ") or bool(_OPENS.match(block))


def _markdown(block: str) -> str:
    if block.startswith("    "):
        return _math([line for row in inspect.cleandoc(block).split("\n") for line in re.split(r"(?<=,) {2,}| {4,}", row)])
    return _formula(block) if _OPENS.match(block) else linked(" ".join(block.split()))


def _formula(block: str) -> str:
    """The formulas a paragraph opens with, a line each, and the rest of the sentence below."""
    formulas: list[str] = []
    rest = _pieces(" ".join(block.split()))
    while rest and (not formulas or _NEXT.match(rest[0])):
        formulas.append(rest.pop(0))
    last, stop, after = formulas[-1].partition(". ")
    text = ", ".join([*([after] if stop else []), *rest])
    return _math([*formulas[:-1], last]) + (f"\n\n{linked(text)}" if text else "")


def _pieces(text: str) -> list[str]:
    """The text cut at the commas outside brackets."""
    pieces, depth = [""], 0
    for sign in text:
        depth += (sign in "([") - (sign in ")]")
        if sign == "," and depth == 0:
            pieces.append("")
        else:
            pieces[-1] += sign
    return [piece.strip() for piece in pieces]


def _math(lines: list[str]) -> str:
    rows = " \\\\\n".join(latex(line.strip().rstrip(".,")) for line in lines)
    return f"```{{math}}\n\\begin{{gathered}}\n{rows}\n\\end{{gathered}}\n```"


_GROUP = r"\(((?:[^()]|\((?:[^()]|\([^()]*\))*\))*)\)"  # in brackets, three deep
_WORDS = r"(?:a )?[A-Za-z]{2,}\d*(?:,? (?:a )?[A-Za-z]{2,})*"
_TOKEN = re.compile(
    rf"(?P<sum>[ΣΠ]) (?P<body>(?:[^()ΣΠ]|{_GROUP})*?) over (?P<over>\w = [^…]*?) … (?P<end>[^),/]*)"
    rf"|sqrt(?P<root>{_GROUP})|(?P<script>[_^])(?:(?P<inner>{_GROUP})|(?P<name>[A-Za-z0-9]+))"
    rf"|`(?P<code>[^`]+)`|(?P<option>[a-z]{{3,}}_[a-z]{{3,}})|\b(?P<function>exp|cos|sin|ln|log|min|max)\b ?"
    rf"|(?P<words>{_WORDS})|\b(?P<letter>[a-z])(?P<digit>\d)\b|(?P<hat>\w)\u0302|(?P<sign>[ΣΠ·…⊙ᵀ]| {{2,}}) ?"
)
_SIGNS = {"Σ": r"\sum ", "Π": r"\prod ", "·": r"\cdot ", "…": r"\ldots ", "⊙": r"\odot ", "ᵀ": "^T"}


def latex(text: str) -> str:
    """A formula as docstrings write it, in LaTeX: words and names of more than a letter upright, sums with their limits."""
    return _TOKEN.sub(_as_latex, text)


def _as_latex(token: re.Match[str]) -> str:
    part = token.groupdict()
    if sign := part["sum"]:
        return f"{_SIGNS[sign].strip()}_{{{latex(part['over'])}}}^{{{latex(part['end'].strip())}}} {latex(part['body'])} "
    if root := part["root"]:
        return rf"\sqrt{{{latex(root[1:-1])}}}"
    if part["script"]:
        name = part["name"] or ""
        indices = name.isalpha() and len(name) <= 2  # as in q_ij
        return f"{part['script']}{{{name if indices else latex(name or part['inner'][1:-1])}}}"
    if name := part["code"] or part["option"] or part["words"]:
        # Spaces count where no operator stands between the words and what is beside them.
        before, after = token.string[: token.start()], token.string[token.end() :]
        left, right = re.search(r"[\w)\]'⌋] $", before), re.match(r" [\w(⌊]", after)
        return rf"\text{{{' ' if left else ''}{name.replace('_', chr(92) + '_')}{' ' if right else ''}}}"
    if part["function"]:
        return rf"\{part['function']} "
    if part["letter"]:
        return f"{part['letter']}_{part['digit']}"
    return rf"\hat{{{part['hat']}}}" if part["hat"] else _SIGNS.get(part["sign"], r" \quad ")


def _items(lines: list[str]) -> str:
    items: list[str] = []
    for line in lines:
        if re.match(r"    \S", line):
            items.append(line.strip())
        elif items:
            items[-1] += " " + line.strip()
    return "\n".join(f"- {_named(item)}" for item in items)


def _named(item: str) -> str:
    name, colon, rest = item.partition(":")
    return f"`{name}`:{linked(rest)}" if colon and re.fullmatch(r"\w+", name) else linked(item)


def linked(text: str) -> str:
    """Markdown that shows the text as it is, `code` as code, arXiv numbers as links."""
    pieces = re.split(r"(`[^`]+`)", text)
    escaped = [p if p.startswith("`") else re.sub(r"([*_$<\[\]|~])", r"\\\1", p) for p in pieces]
    return re.sub(r"arXiv (\d{4}\.\d{4,5})", r"[arXiv \1](https://arxiv.org/abs/\1)", "".join(escaped))
