"""The formats of JSON Schema as patterns for the whole string.

Each pattern accepts nothing that its format forbids. Some accept less than the format allows, where the rest would need
counting over a whole text: host names (their 253 characters are kept by bounding labels and their number together) and
`--` in them (which could begin a punycode label that needs decoding), quoted local parts of e-mail addresses.
"""

from __future__ import annotations

_DIGIT_PAIR = "[0-9]{2}"
_LEAP = "([0-9]{2}(0[48]|[2468][048]|[13579][26])|([02468][048]|[13579][26])00)"
_DATE = (
    "([0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)"
    f"|02-(0[1-9]|1[0-9]|2[0-8]))|{_LEAP}-02-29)"
)
_CLOCK = "([01][0-9]|2[0-3]):[0-5][0-9]"
_TIME = rf"({_CLOCK}:[0-5][0-9](\.[0-9]{{1,9}})?([Zz]|[+-]{_CLOCK})|23:59:60(\.[0-9]{{1,9}})?([Zz]|[+-]00:00))"
_DURATION_TIME = "T([0-9]+H([0-9]+M([0-9]+S)?)?|[0-9]+M([0-9]+S)?|[0-9]+S)"
_DURATION = (
    f"P([0-9]+W|{_DURATION_TIME}|([0-9]+Y([0-9]+M([0-9]+D)?)?|[0-9]+M([0-9]+D)?|[0-9]+D)({_DURATION_TIME})?)"
).replace("[0-9]+", "[0-9]{1,9}")


def _hosts(alnum: str) -> str:
    def label(longest: int) -> str:
        return f"[{alnum}](-?[{alnum}]){{0,{(longest - 1) // 2}}}"

    return "(" + "|".join(rf"{label(w)}(\.{label(w)}){{0,{n - 1}}}" for w, n in ((61, 4), (31, 7), (13, 16))) + ")"


_HOST = _hosts("A-Za-z0-9")
_ATOM = "[A-Za-z0-9!#$%&'*+/=?^_`{|}~-]"
_WIDE = "\u00a0-\ud7ff\uf900-\ufdcf\ufdf0-\uffef\U00010000-\U0001fffd\U00020000-\U0002fffd\U00030000-\U0003fffd"
_OCTET = "(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"{_OCTET}(\.{_OCTET}){{3}}"
_H16 = "[0-9A-Fa-f]{1,4}"
_LS32 = f"({_H16}:{_H16}|{_IPV4})"
_IPV6 = (
    "("
    + "|".join(
        [
            f"({_H16}:){{6}}{_LS32}",
            f"::({_H16}:){{5}}{_LS32}",
            *(f"({_H16}(:{_H16}){{0,{before}}})?::({_H16}:){{{4 - before}}}{_LS32}" for before in range(5)),
            f"({_H16}(:{_H16}){{0,5}})?::{_H16}",
            f"({_H16}(:{_H16}){{0,6}})?::",
        ]
    )
    + ")"
)
_POINTER = "(/([^/~]|~[01])*)*"


def _uri(wide: str) -> tuple[str, str]:
    """A URI, and a reference to one (RFC 3986); with `wide`, an IRI (RFC 3987)."""
    free, subs, escape = f"A-Za-z0-9._~{wide}", "!$&'()*+,;=", "%[0-9A-Fa-f]{2}"
    char = f"([{free}{subs}:@-]|{escape})"
    segment, no_colon = f"{char}*", f"([{free}{subs}@-]|{escape})+"
    name = f"([{free}{subs}-]|{escape})*"
    literal = rf"\[({_IPV6}|[vV][0-9A-Fa-f]+\.[A-Za-z0-9._~{subs}:-]+)\]"
    authority = f"(([{free}{subs}:-]|{escape})*@)?({literal}|{name})(:[0-9]*)?"
    tail = rf"(\?({char}|[/?])*)?(#({char}|[/?])*)?"
    rooted = f"//{authority}(/{segment})*|/({char}+(/{segment})*)?"
    uri = f"[A-Za-z][A-Za-z0-9+.-]*:({rooted}|{char}+(/{segment})*|){tail}"
    return uri, f"({uri}|({rooted}|{no_colon}(/{segment})*|){tail})"


def _uri_template() -> str:
    """RFC 6570, without the operators that it reserves."""
    escape, literal = "%[0-9A-Fa-f]{2}", f"[!#$&()*+,./0-9:;=?@A-Z\\[\\]_a-z~{_WIDE}-]"
    letter = f"([A-Za-z0-9_]|{escape})"
    variable = rf"{letter}(\.?{letter})*(\*|:[1-9][0-9]{{0,3}})?"
    return rf"({literal}|{escape}|\{{[+#./;?&]?{variable}(,{variable})*\}})*"


_URI, _URI_REFERENCE = _uri("")
_IRI, _IRI_REFERENCE = _uri(_WIDE)
_HEX = "[0-9A-Fa-f]"

PATTERNS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f"{_DATE}[Tt]{_TIME}",
    "duration": _DURATION,
    "email": rf"{_ATOM}+(\.{_ATOM}+)*@{_HOST}",
    "idn-email": rf"[A-Za-z0-9!#$%&'*+/=?^_`{{|}}~{_WIDE}-]+(\.{_ATOM}+)*@{_HOST}",
    "hostname": _HOST,
    "idn-hostname": _HOST,
    "ipv4": _IPV4,
    "ipv6": _IPV6,
    "uuid": f"{_HEX}{{8}}(-{_HEX}{{4}}){{3}}-{_HEX}{{12}}",
    "uri": _URI,
    "uri-reference": _URI_REFERENCE,
    "iri": _IRI,
    "iri-reference": _IRI_REFERENCE,
    "uri-template": _uri_template(),
    "json-pointer": _POINTER,
    "relative-json-pointer": f"(0|[1-9][0-9]*)(#|{_POINTER})",
}

# Regular expressions of JavaScript, with groups in up to two groups and without lookaround and references.
_LITERAL = r"[^\\^$.*+?()\[\]{}|\n\r/]|\\[dDwWsStnrfv^$.*+?()\[\]{}|/\\]|\."
_IN_CLASS = r"[^\\\]\[\n\r-]|\\[dDwWsStnrfv^$.*+?()\[\]{}|/\\-]"
_RANGES = "a-z|A-Z|0-9|a-f|A-F|а-я|А-Я"
_CLASS = rf"\[\^?({_IN_CLASS}|{_RANGES})({_RANGES}|{_IN_CLASS})*-?\]"
_TIMES = r"([*+?]|\{[0-9]\}|\{[0-9]{1,3},\}|\{[0-9],[1-9][0-9]{1,3}\})\??"


def _regex(depth: int) -> str:
    group = "" if depth == 0 else rf"|\((\?:)?{_regex(depth - 1)}\)"
    term = rf"(({_LITERAL}|{_CLASS}{group})({_TIMES})?)"
    row = rf"\^?{term}*\$?"
    return rf"{row}(\|{row})*"


PATTERNS["regex"] = _regex(2)
PATTERNS |= {"full-date": PATTERNS["date"], "url": PATTERNS["uri"]}  # what others call them

NUMERIC = {"int32": (-(2**31), 2**31 - 1), "int64": (-(2**63), 2**63 - 1)}  # OpenAPI's; for numbers only
NO_LIMIT = frozenset({"float", "double"})  # these say how a number is kept, not which one it is
