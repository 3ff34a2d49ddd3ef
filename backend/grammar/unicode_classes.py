r"""Unicode scripts: which characters `\p{Greek}` means, of Unicode 17.0 (the Unicode licence; facts of Scripts.txt).

Python's `unicodedata` knows categories, but not scripts. A line of the table is a script's names and its ranges, each
as the gap since the last one and, behind a comma, the number of further characters, in base 36. The test of this table
(`tests/grammar/test_unicode_classes.py`) reads the scripts from the `regex` package and compares; `write_table` there
writes the table anew.
"""

from __future__ import annotations

from functools import lru_cache

from stemma.backend.grammar import charset
from stemma.backend.grammar.charset import Ranges

# Python's long names for categories are not in `unicodedata` either.
CATEGORIES = {
    "other": "C", "control": "Cc", "cntrl": "Cc", "format": "Cf", "unassigned": "Cn", "privateuse": "Co",
    "surrogate": "Cs", "letter": "L", "lowercaseletter": "Ll", "modifierletter": "Lm", "otherletter": "Lo",
    "titlecaseletter": "Lt", "uppercaseletter": "Lu", "mark": "M", "combiningmark": "M", "spacingmark": "Mc",
    "enclosingmark": "Me", "nonspacingmark": "Mn", "number": "N", "decimalnumber": "Nd", "digit": "Nd",
    "letternumber": "Nl", "othernumber": "No", "punctuation": "P", "punct": "P", "connectorpunctuation": "Pc",
    "dashpunctuation": "Pd", "closepunctuation": "Pe", "finalpunctuation": "Pf", "initialpunctuation": "Pi",
    "otherpunctuation": "Po", "openpunctuation": "Ps", "symbol": "S", "currencysymbol": "Sc", "modifiersymbol": "Sk",
    "mathsymbol": "Sm", "othersymbol": "So", "separator": "Z", "lineseparator": "Zl", "paragraphseparator": "Zp",
    "spaceseparator": "Zs",
}  # fmt: skip
_SHORT = {short.lower(): short for short in [*CATEGORIES.values(), "Cn"]}


def property_named(text: str) -> Ranges | None:
    r"""The characters of `\p{text}`: `Lu`, `Uppercase_Letter`, `gc=Lu`, `Greek`, `Script=Grek`, `Any`, `ASCII`,
    `Assigned`. Case, spaces, hyphens and underscores say nothing, as in the standard's loose matching. None if unknown.
    """
    kind, equals, name = text.partition("=")
    loose = _loose(name if equals else kind)
    if equals and _loose(kind) not in ("gc", "generalcategory", "category", "sc", "script"):
        return None
    if not equals or _loose(kind) in ("gc", "generalcategory", "category"):
        found = _category(loose)
        if found is not None or equals:
            return found
    if not equals and loose in ("any", "ascii", "assigned"):
        return {"any": charset.ALL, "ascii": ((0, 0x7F),)}.get(loose) or charset.complement(_category("cn") or ())
    return script(loose)


def _loose(name: str) -> str:
    return name.strip().lower().translate({ord(c): None for c in " -_"})


def _category(loose: str) -> Ranges | None:
    if loose in ("lc", "l&", "casedletter"):
        return charset.ranges(pair for name in ("Lu", "Ll", "Lt") for pair in charset.of_category(name) or ())
    short = _SHORT.get(loose) or CATEGORIES.get(loose)
    return charset.of_category(short) if short else None


@lru_cache(maxsize=32)
def script(loose: str) -> Ranges | None:
    """The characters of a script, by one of its names in lower case without separators."""
    ranges = _table().get(loose)
    if ranges is None:
        return None
    found, at = [], 0
    for part in ranges.split():
        gap, _, more = part.partition(",")
        low = at + int(gap, 36)
        high = low + int(more or "0", 36)
        found.append((low, high))
        at = high + 1
    return charset.ranges(found)


@lru_cache(maxsize=1)
def _table() -> dict[str, str]:
    rows: dict[str, str] = {}
    for line in TABLE.replace("\n  ", " ").strip().splitlines():
        names, _, ranges = line.partition(": ")
        rows.update(dict.fromkeys(names.split(), ranges))
    return rows


TABLE = """
common zyyy: 0,1s q,5 q,1a 1,e 1,4 n v ch,12 5,4 2,j 38 9 6 1 hp 6 e 3 w 4c ec 3l,1 yh b9,3 82 167,2 1z,1 5n,1 1 y5
  d 7,3 1,5 1,2 2 lh,b 2,2e 1,a 3,a 1,f g,10 1n,11 1,2 2,5 1,q 1,g 15,2 4,ih m,a l,pr 74,hf 2,3t e8,2l 2,3 b0,k 1
  1,o f,7 4,3 2j,1 3 2i,1 43,f w,11 9 1c,1r v,28 1b 2g,4n 534,1r hkw,x 2u,2 4l,9 6s 4g az e,1 g5u,1 5s,9 m,y 1,i 1,3
  43 1,v q,5 q,a a 19,1 1s,6 1,6 a,4 76,2 4,18 3,8 28,c 1f,18 6c,q 10o4,3 318,70 3,c3 6,m 1,2 8,w 2a,37 1o,6t a,12
  2,1p 3,g 8,1 7,t 4,29 28,a 2,10 1q,j c,j c,2e 9,o 3r,2c 1,1y 1,1 2 2,1 2,3 1,b 1 1,6 1,1s 1,3 2,7 1,6 1,r 1,3 1,4
  1 3,6 1,9g 1,83 2,1d lc,s 3f8,1v 24,1o jm,17 4,2r c,e 2,e 1,e 1,10 a,4u 1j,p 1,1 d,17 4,8 7,1 e,5 4a,rd 2,g 3,c
  3,63 4,b 4,r 4,1j 8,9 6,13 8,t 2,b 4,1 e,8 13,9j 8,d 2,c 3,1y 1 3,h 1,c 3,b 5,42 1,2u gvly u,2n
latin latn: 1t,p 6,p 1b f 5,m 1,u 1,cg 13,4 55n,11 6,1c 5,3 5,c 1,1x 1t,73 a9 d g,f 3u,1 6 r h,14 253,v o82,2t 3,2a
  4 e,e mo,16 1,8 1,3 2,1 fpu,6 t6,p 6,p 1lx,5 1,15 1,d 16io,3l e,6 1i,11 2,a
bopomofo bopo: kq,1 93t,16 34,v
inherited zinh qaai: lc,33 7p,1 ck,a q kg,3 3ff,1s db,2 1,c 1,6 4 6 3,1 5i,1r ek,1 5e,w 309,3 2z,1 14kl,f g,d r3 6a
  38a 1138,19 2,m dc,1 1q,2 h,7 2,6 u,3 4t,1 h40z,6n
greek grek: og,3 1,2 2,3 1 4 1 1,2 1 1,j 1,1q e,f 4yu,4 1e,4 4,4 2c 8w,l 2,5 2,11 2,5 2,7 1 1 1 1,u 2,1g 1,e 1,d 2,5
  1,i 2,2 1,8 87 rb2 gyi,26 h 155r,1x 2p9,1
coptic copt qaac: rm,d 80g,37 5,6
cyrillic cyrl: sg,3o 2,4o 4ls,a 4g 24 38n,v nr4,2n ham,1 18n4,1p x
armenian armn: 10x,11 1,1j 1chv,4
hebrew hebr: 13l,1k 6,q 4,5 1cfc,p 1,4 1 1,1 1,1 1,9
arabic arab: 16o,4 1,5 1,d 1,2 1,v 1,9 b,p 1,2z 1,x 28,1b 6o,x 5,22 1,s 1bv4,dp 2,3z w,f 34,4 1,3q 31f,u 1v,5 1,11
  1,f 181s,3 1,q 1,1 1 2 1,9 1,3 1 1 6 4 1 1 1,2 1,1 1 2 1 1 1 1 1,1 1 2,3 1,6 1,3 1,3 1 1,9 1,g 5,2 1,4 1,g 1g,1
syriac syrc: 1ds,d 1,1n 2,2 7k,a
thaana thaa: 1hc,1d
nkoo nko: 1j4,1m 2,2
samaritan samr: 1kw,19 2,e
mandaic mand: 1mo,r 2
devanagari deva: 1s0,28 4,e 2,p vhc,v mio,a
bengali beng: 1vk,3 1,7 2,1 2,l 1,6 1 3,3 2,8 2,1 2,3 8 4,1 1,4 2,o 1ii9,1
gurmukhi guru: 1z5,2 1,5 4,1 2,l 1,6 1,1 1,1 1,1 2 1,4 4,1 2,2 3 7,3 1 7,g
gujarati gujr: 22p,2 1,8 1,2 1,l 1,6 1,1 1,4 2,9 1,2 1,2 2 f,3 2,b 7,6
oriya orya: 269,2 1,7 2,1 2,l 1,6 1,1 1,4 2,8 2,1 2,2 5,4 4,1 1,4 2,h
tamil taml: 29u,1 1,5 3,2 1,3 3,1 1 1,1 3,1 3,2 3,b 4,4 3,2 1,3 2 6 e,k 1ih1,1d d
telugu telu: 2dc,c 1,2 1,m 1,f 2,8 1,2 1,3 7,1 1,2 1,1 2,3 2,9 7,8
kannada knda: 2gw,c 1,2 1,m 1,9 1,4 2,8 1,2 1,3 7,1 5,2 1,3 2,9 1,2
malayalam mlym: 2kg,c 1,2 1,1e 1,2 1,5 4,f 2,p
sinhala sinh: 2o1,2 1,h 3,n 1,8 1 2,6 3 4,5 1 1,7 6,9 2,2 1fcc,j
thai: 2rl,1l 5,r
laoo lao: 2v5,1 1 1,4 1,n 1 1,m 2,4 1 1,6 1,9 2,3
tibetan tibt: 2yo,1z 1,z 4,12 1,z 1,e 1,6 4,1
myanmar mymr: 35s,4f u9s,u 2p,v le8,j
georgian geor: 3a8,11 1 5 2,16 1,3 2a8,16 2,2 37k,11 1 5
hangul hang: 3cw,73 5ym,1 75,2l 35,u 1t,u nhd,s hv,8mb c,m 4,1c 7tw,u 3,5 2,5 2,5 2,2
ethiopic ethi: 3k0,20 1,3 2,6 1 1,3 2,14 1,3 2,w 1,3 2,6 1 1,3 2,e 1,1k 1,3 2,1u 2,v 3,p 546,m 9,6 1,6 1,6 1,6 1,6
  1,6 1,6 1,6 opu,5 2,5 2,5 9,6 1,6 1qk1,6 1,3 1,1 1,e
cherokee cher: 3vk,2d 2,5 twy,27
canadianaboriginal cans: 3y8,hr fk,1x 1ewq,f
ogham ogam: 4g0,s
runic runr: 4gw,22 3,a
tagalog tglg: 4jk,l 9
hanunoo hano: 4kg,k
buhid buhd: 4lc,j
tagbanwa tagb: 4m8,c 1,2 1,1
khmer khmr: 4n4,2l 2,9 6,9 di,v
mongolian mong: 4qo,1 2 1,j 6,2g 7,16 1e45,c
limbu limb: 4xs,u 1,b 4,b 4 3,b
taile tale: 500,t 2,4
newtailue talu: 51c,17 4,p 6,a 3,1
buginese bugi: 54w,r 2,1
taitham lana: 55s,1q 1,s 2,a 6,9 6,d
balinese bali: 5c0,24 1,1d
sundanese sund: 5fk,1r 74,7
batak batk: 5hc,1f 8,3
lepcha lepc: 5j4,1j 3,e 3,2
olchiki olck: 5lc,1b
braille brai: 7wg,73
glagolitic glag: 8ow,2n 2e1s,6 1,g 2,6 1,1 1,4
tifinagh tfng: 8xc,1j 7,1 e
hani han: 96o,p 1,2g c,5x 1b 1 p,8 e,3 qs,533 1s,g73 hkw,a5 2,2x n48,1 c,6 sg9,wyn w,3dq 1,4gd 2,5rk f,h9 1wi,f1
  15u,3t6 5,6jt
hiragana hira: 9j5,2d 6,2 23q9,7y 3 e t,2 crx
katakana kana: 9lt,2h 2,2 6o,f 5s,1a 1,2f 14b2,9 1,18 ytu,3 1,6 1,1 1 7z,2 1,4 18 e,4
yiii yi: vls,wc 3,1i
lisu: wk0,1b o8g
vaii vai: wlc,8b
bamum bamu: www,2f 124o,fs
sylotinagri sylo: x6o,18
phagspa phag: x8g,1j
saurashtra saur: xa8,1x 8,b
kayahli kali: xds,19 1
rejang rjng: xf4,z b
javanese java: xhc,25 2,9 4,1
cham: xkw,1i 9,d 2,9 2,3
taiviet tavt: xog,1u o,4
meeteimayek mtei: xr4,m 5l,19 2,9
linearb linb: 1ekg,b 1,p 1,i 1,1 1,e 2,d y,3e
lycian lyci: 1f28,s
carian cari: 1f34,1c
olditalic ital: 1f5s,z 9,2
gothic goth: 1f74,q
oldpermic perm: 1f80,16
ugaritic ugar: 1f9c,t 1
oldpersian xpeo: 1fa8,z 4,d
deseret dsrt: 1fcw,27
shavian shaw: 1ff4,1b
osmanya osma: 1fgg,t 2,9
osage osge: 1fhs,z 4,z
elbasan elba: 1fk0,13
caucasianalbanian aghb: 1flc,1f b
vithkuqi vith: 1fn4,a 1,e 1,6 1,1 1,a 1,e 1,6 1,1
todhri todr: 1fpc,1f
lineara lina: 1fr4,8m 9,l a,7
cypriot cprt: 1g5c,5 2 1,17 1,1 3 2
imperialaramaic armi: 1g74,l 1,8
palmyrene palm: 1g80,v
nabataean nbat: 1g8w,u 8,8
hatran hatr: 1gbk,i 1,1 5,4
phoenician phnx: 1gcg,r 3
lydian lydi: 1gdc,p 5
sidetic sidt: 1ge8,p
meroitichieroglyphs mero: 1gg0,v
meroiticcursive merc: 1ggw,n 4,j 2,19
kharoshthi khar: 1gjk,3 1,1 5,7 1,2 1,s 2,2 4,9 7,8
oldsoutharabian sarb: 1gm8,v
oldnortharabian narb: 1gn4,v
manichaean mani: 1gow,12 4,b
avestan avst: 1gqo,1h 3,6
inscriptionalparthian prti: 1gsg,l 2,7
inscriptionalpahlavi phli: 1gtc,i 5,7
psalterpahlavi phlp: 1gu8,h 7,3 c,6
oldturkic orkh: 1gxs,20
oldhungarian hung: 1h1c,1e d,1e 7,5
hanifirohingya rohg: 1h4w,13 8,9
garay gara: 1h6o,11 3,s 8,1
yezidi yezi: 1hfk,15 1,2 2,1
oldsogdian sogo: 1hj4,13
sogdian sogd: 1hkg,15
olduyghur ougr: 1hm8,p
chorasmian chrs: 1ho0,r
elymaic elym: 1hpc,m
brahmi brah: 1hq8,25 4,z 9
kaithi kthi: 1hts,1u a
sorasompeng sora: 1hw0,o 7,9
chakma cakm: 1hxc,1g 1,h
mahajani mahj: 1hzk,12
sharada shrd: 1i0w,2n 1vk,7
khojki khoj: 1i4g,h 1,1a
multani mult: 1i80,6 1 1,3 1,e 1,a
khudawadi sind: 1i9c,1m 5,9
grantha gran: 1ibk,3 1,7 2,1 2,l 1,6 1,1 1,4 2,8 2,1 2,2 2 6 5,6 2,6 3,4
tulutigalari tutg: 1if4,9 1 2 1,11 1,9 1 2 1,3 1,9 1,1 8,1
newa: 1iio,2j 1,4
tirhuta tirh: 1im8,1z 8,9
siddham sidd: 1itc,1h 2,11
modi: 1iww,1w b,9
takri takr: 1j0g,1l 6,9
ahom: 1j40,q 2,e 4,m
dogra dogr: 1jb4,1n
warangciti wara: 1jfk,2a c
divesakuru diak: 1ji8,6 2 2,7 1,1 1,t 1,1 2,b 9,9
nandinagari nand: 1jmo,7 2,19 2,a
zanabazarsquare zanb: 1jpc,1z
soyombo soyo: 1jrk,2a
paucinhau pauc: 1juo,1k
sunuwar sunu: 1k1s,x e,9
bhaiksuki bhks: 1k3k,8 1,18 1,d a,s
marchen marc: 1k6o,v 2,l 1,d
masaramgondi gonm: 1kao,6 1,1 1,17 3 1,1 1,8 8,9
gunjalagondi gong: 1kdc,5 1,1 1,10 1,1 1,5 7,9
tolongsiki tols: 1kfk,17 4,9
makasar maka: 1ko0,o
kawi: 1kow,g 1,14 3,s
cuneiform xsux: 1kw0,pl 2u,8z c,2f 4k,1m
protocuneiform pcun: 1m08,4j
cyprominoan cpmn: 1nyo,2q
egyptianhieroglyphs egyp: 1o1s,ut a,32y
anatolianhieroglyphs hluw: 1s00,g6
gurungkhema gukh: 1xq8,1l
mroo mro: 1zk0,u 1,9 4,1
tangsa tnsa: 1zlc,26 1,9
bassavah bass: 1zo0,t 2,5
pahawhhmong hmng: 1zpc,1x a,9 1,6 1,k 5,i
kiratrai krai: 205c,1l
medefaidrin medf: 20cg,2i
beriaerfe berf: 20f4,o 2,o
miao plrd: 20hs,22 4,1k 7,g
tangut tang: 20o0 v,5bz e8,w 2n,36
nushu nshu: 20o1 cy6,az
khitansmallscript kits: 20o4 5cr,d6 10
jurchen jurc: 26m8,pd e,1e
duployan dupl: 2fpc,2y 5,c 3,8 7,9 2,3
signwriting sgnw: 2l8g,i3 f,4 1,e
nyiakengpuachuehmong hmnp: 2n0g,18 3,d 2,9 4,1
toto: 2nbk,u
wancho wcho: 2ncw,1l 5
nagmundari nagm: 2nrk,15
olonal onao: 2nyo,16 4
taiyo tayo: 2o5c,u 1,l 8,1
mendekikakui mend: 2oe8,5g 2,f
adlam adlm: 2olc,23 4,9 4,1
seal: 5csg,8qn
"""
