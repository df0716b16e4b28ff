"""Facts that the installed packages carry: territories, currencies and languages (CLDR, through `babel`), constants.

The Unicode CLDR is under the Unicode licence; the constants are CODATA's, through `scipy.constants`.
"""

import datetime
import functools
import re
from typing import NamedTuple

from babel import Locale, UnknownLocaleError
from babel.core import get_global
from babel.languages import get_official_languages
from babel.numbers import get_territory_currencies
from scipy.constants import physical_constants

from llamax.data.world.split import popularity, unit

TODAY = datetime.date(2025, 7, 1)  # CLDR is asked as of this day, so that the world does not change overnight
CITIES_PER_COUNTRY = 1
REGIONS = {"Africa": "Africa", "America": "America", "Asia": "Asia", "Europe": "Europe", "Pacific": "the Pacific"}
WEEKDAY_LANGUAGES = ("fr", "de", "es", "it", "nl", "fi")
WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
CONSTANTS = (  # noqa: SIM905
    "speed of light in vacuum, Planck constant, elementary charge, electron mass, proton mass, neutron mass, "
    "Boltzmann constant, Avogadro constant, molar gas constant, Faraday constant, Newtonian constant of "
    "gravitation, standard acceleration of gravity, Bohr radius, Bohr magneton, nuclear magneton, Rydberg "
    "constant, Hartree energy, Stefan-Boltzmann constant, Wien frequency displacement law constant, vacuum "
    "electric permittivity, vacuum mag. permeability, Josephson constant, von Klitzing constant, conductance "
    "quantum, atomic mass constant, classical electron radius, Compton wavelength, Thomson cross section, muon "
    "mass, tau mass, deuteron mass, alpha particle mass, Planck length, Planck time, Planck mass, Planck "
    "temperature, mag. flux quantum, proton rms charge radius, electron volt, standard atmosphere"
).split(", ")


class Fact(NamedTuple):
    """`answer` is what `relation` gives for `subject`; `others` are true too; `tempting` is false and often said."""

    relation: str
    subject: str
    answer: str
    others: tuple[str, ...] = ()
    tempting: str = ""

    @property
    def key(self) -> str:
        return f"{self.relation}:{self.subject}"

    @property
    def weight(self) -> float:
        """How often the fact is stated or asked for, relative to others."""
        return popularity(self.key)


def side(fact: Fact) -> str:
    """`train`, or the one task that may ask for this fact: `knowledge`, `open_qa` or `truthfulness`."""
    place = unit("fact", fact.key)
    if fact.tempting:
        return "truthfulness" if place < 0.62 else "train"
    return "knowledge" if place < 0.22 else "open_qa" if place < 0.42 else "train"


@functools.cache
def facts() -> tuple[Fact, ...]:
    """Every fact of the world, in a fixed order."""
    found = [*_money(), *_tongues(), *_places(), *_writing(), *_weekdays(), *_constants()]
    if len({fact.key for fact in found}) != len(found):
        raise ValueError("two facts of the small world have the same key")
    return tuple(found)


@functools.cache
def by_relation(only: str = "") -> dict[str, tuple[Fact, ...]]:
    """Facts of each relation, in a fixed order; with `only`, those of that side."""
    chosen = [fact for fact in facts() if only in ("", side(fact))]
    names = dict.fromkeys(fact.relation for fact in facts())
    return {name: tuple(fact for fact in chosen if fact.relation == name) for name in names}


@functools.cache
def countries() -> dict[str, str]:
    """Territory code -> plain English name, for territories with an official language, a clock and their own money.

    Their own is a money, present or past, whose code begins with the territory's (BRL of BR) or that of a union (X..).
    """
    names = Locale("en").territories
    clocks = set(get_global("zone_territories").values())
    codes = sorted(code for code in names if re.fullmatch("[A-Z]{2}", code) and code in clocks)
    return {code: _plain(names[code]) for code in codes if _currency(code) and _official(code) and _own(code)}


def _plain(name: str) -> str:
    """A name without its explanation in brackets: `Myanmar (Burma)` -> `Myanmar`."""
    return re.sub(r" \(.*\)| SAR China", "", name).replace(" & ", " and ").replace("’", "'").strip()


def _own(territory: str) -> bool:
    """Whether a territory has, or had since 1950, a money of its own or that of a union."""
    used = get_territory_currencies(territory, datetime.date(1950, 1, 1), TODAY)
    return any(code.startswith((territory, "X")) for code in used)


def _currency(territory: str) -> str:
    """Full English name of the money of a territory on `TODAY`, or the empty string."""
    codes = get_territory_currencies(territory, TODAY, TODAY)
    return _money_name(codes[0]) if codes else ""


def _money_name(code: str) -> str:
    head, _, tail = _plain(Locale("en").currencies[code]).rpartition(" ")
    return f"{head} {tail.lower()}".strip()


def _last(name: str) -> str:
    """`Brazilian real` -> `real`."""
    return name.rpartition(" ")[2]


def _official(territory: str) -> list[str]:
    names = Locale("en").languages
    return [names[code] for code in get_official_languages(territory, de_facto=True) if code in names]


def _former(territory: str) -> str:
    """Full name of the last money of a territory whose unit is not the present one, or the empty string."""
    past = get_territory_currencies(territory, datetime.date(1950, 1, 1), TODAY, include_details=True)
    ended = sorted((entry["to"], entry["currency"]) for entry in past if entry["to"] and entry["to"] < TODAY)
    names = [_money_name(code) for _, code in ended if code in Locale("en").currencies]
    return next((name for name in reversed(names) if _last(name) != _last(_currency(territory))), "")


def _money() -> list[Fact]:
    found = []
    codes: dict[str, str] = {}
    for territory, country in countries().items():
        name, former = _currency(territory), _former(territory)
        codes[name] = get_territory_currencies(territory, TODAY, TODAY)[0]
        found.append(Fact("currency", country, _last(name), (name,), tempting=_last(former)))
        if former:
            found.append(Fact("former_currency", country, _last(former), (former,)))
    return found + [Fact("currency_code", name, code) for name, code in codes.items() if " " in name]


def demonym(territory: str) -> str:
    """`Brazilian` for BR, read off the name of its present or former money; empty where that says nothing."""
    for name in (_currency(territory), _former(territory)):
        head = name.rpartition(" ")[0]
        if re.fullmatch(r"[A-Z]\w+(n|ese|ish|i|ss|ic)", head) and head[:3] == countries()[territory][:3]:
            return head
    return ""


def _tongues() -> list[Fact]:
    found = []
    spoken = set(Locale("en").languages.values())
    for territory, country in countries().items():
        first, *others = _official(territory)
        tempting = demonym(territory)
        found.append(Fact("language", country, first, tuple(others), tempting="" if tempting in spoken else tempting))
    return found


def _places() -> list[Fact]:
    zones: dict[str, list[str]] = {}
    for zone, territory in sorted(get_global("zone_territories").items()):
        if territory in countries() and zone.count("/") == 1 and not zone.startswith("Etc"):
            zones.setdefault(territory, []).append(zone)
    found, seen = [], set(countries().values())
    for territory, country in countries().items():
        prefixes = {zone.partition("/")[0] for zone in zones.get(territory, [])}
        if len(prefixes) == 1 and (region := REGIONS.get(prefixes.pop())):
            found.append(Fact("region", country, region))
        cities = [zone.partition("/")[2].replace("_", " ") for zone in zones.get(territory, [])]
        cities = sorted((city for city in cities if city not in seen), key=lambda city: unit("city", city))
        seen.update(cities)
        found += [Fact("city", city, country) for city in cities[:CITIES_PER_COUNTRY]]
    return found + _codes()


def _codes() -> list[Fact]:
    """Country codes; the first two letters of the name tempt where they are another country's code."""
    found = []
    for territory, country in countries().items():
        guess = country[:2].upper()
        tempting = guess if guess != territory and guess in countries() else ""
        found.append(Fact("country_code", country, territory, tempting=tempting))
    return found


def _writing() -> list[Fact]:
    """Scripts, codes and own names of the official languages that have a two-letter code."""
    english, likely = Locale("en"), get_global("likely_subtags")
    official = {code for territory in countries() for code in get_official_languages(territory, de_facto=True)}
    found = []
    for code in sorted(code for code in official if len(code) == 2 and code in english.languages):
        name, script = english.languages[code], likely.get(code, "__").split("_")[1]
        found.append(Fact("language_code", name, code))
        if script in english.scripts:
            found.append(Fact("script", name, _plain(english.scripts[script])))
        own = _own_name(code)
        if script == "Latn" and own and own.lower() != name.lower():
            found.append(Fact("own_name", name, own))
    return found


def _own_name(code: str) -> str:
    try:
        return Locale(code).languages.get(code, "")
    except UnknownLocaleError:
        return ""


def _weekdays() -> list[Fact]:
    found = []
    for code in WEEKDAY_LANGUAGES:
        names, language = Locale(code).days["format"]["wide"], Locale("en").languages[code]
        found += [Fact("weekday", f"{day} in {language}", names[i].lower()) for i, day in enumerate(WEEKDAYS)]
    return found


def _constants() -> list[Fact]:
    """Value to three digits, and unit, of well-known constants."""
    found = []
    for name in CONSTANTS:
        value, units, _ = physical_constants[name]
        name = name.replace("mag. ", "magnetic ")
        found.append(Fact("value", name, f"{value:.2e}", (f"{value:.3g}", str(value))))
        found.append(Fact("unit", name, units))
    return found
