"""The eighteen identifiers of 45 CFR 164.514(b)(2)(i), and what columns that hold them are usually called."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["IDENTIFIERS", "Identifier", "looks_like", "shapes_in"]


@dataclass(frozen=True)
class Identifier:
    """One of the eighteen: its letter in the rule, what it is, and whole words of names that suggest it."""

    letter: str
    title: str
    words: str


# The keys are what ``Encrypted(identifier=...)`` takes.
IDENTIFIERS: dict[str, Identifier] = {
    "name": Identifier(
        "A", "Names", "name|names|fname|lname|surname|firstname|lastname|fullname|maiden|alias|kin|guardian|contact"
    ),
    "geography": Identifier(
        "B", "Geography below a state",
        "address|addr|street|city|town|county|zip|zipcode|postal|postcode|precinct|latitude|longitude|lat|lng|lon|geo|geocode",
    ),
    "date": Identifier(
        "C", "Dates of a person, and ages over 89",
        "dob|birth|birthday|birthdate|born|death|died|deceased|admission|admitted|discharge|discharged|age|visit|"
        "visited|appointment",
    ),
    "telephone": Identifier(
        "D", "Telephone numbers", "phone|telephone|tel|mobile|cell|cellphone|landline|sms|pager|msisdn"
    ),
    "fax": Identifier("E", "Fax numbers", "fax"),
    "email": Identifier("F", "E-mail addresses", "email|mail|e_mail"),
    "ssn": Identifier("G", "Social security numbers", "ssn|social|sin|itin|tin|tax"),
    "mrn": Identifier(
        "H", "Medical record numbers", "mrn|chart|medical|patient_no|patient_id|patient_number|patient_code"
    ),
    "health_plan": Identifier(
        "I", "Health-plan beneficiary numbers",
        "member|subscriber|beneficiary|insurance|insured|policy|plan|payer|medicare|medicaid|group_no|group_number",
    ),
    "account": Identifier("J", "Account numbers", "account|acct|iban|card|routing|bank|invoice|guarantor"),
    "certificate": Identifier(
        "K", "Certificate and licence numbers",
        "license|licence|licence_no|certificate|passport|driver|drivers|npi|dea|visa",
    ),
    "vehicle": Identifier("L", "Vehicle identifiers", "vehicle|vin|plate|car"),
    "device": Identifier("M", "Device identifiers", "device|serial|imei|udi|implant|pacemaker|mac"),
    "url": Identifier("N", "Web addresses", "url|uri|website|homepage|link|href|webpage"),
    "ip": Identifier("O", "IP addresses", "ip|ipv4|ipv6|ip_address|inet"),
    "biometric": Identifier(
        "P", "Biometric identifiers", "biometric|biometrics|fingerprint|retina|iris|voiceprint|voice|genome|dna|gait"
    ),
    "photo": Identifier(
        "Q", "Full-face photographs", "photo|photograph|picture|image|portrait|avatar|face|selfie|video"
    ),
    "other": Identifier(
        "R", "Any other unique identifying number, characteristic or code",
        "note|notes|comment|comments|narrative|remark|remarks|memo|description|diagnosis|history|complaint|summary|"
        "message|reason|code|identifier|reference|external|nickname|username|handle|occupation|employer|race|"
        "ethnicity|religion|no|number|num",
    ),
}  # fmt: skip

PATTERNS = {key: re.compile(rf"(?:^|_)(?:{identifier.words})(?:_|$)") for key, identifier in IDENTIFIERS.items()}

GENERAL = ("name", "geography", "other")

# Shapes of raw values. Each is strict: a false alarm teaches people to look away.
SHAPES: dict[str, re.Pattern[str]] = {
    "ssn": re.compile(r"(?<![\d-])(?!000|666)\d{3}-(?!00)\d{2}-(?!0000)\d{4}(?![\d-])"),
    "email": re.compile(r"[A-Za-z0-9._%+-]+@[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)*\.[A-Za-z]{2,}"),
    "telephone": re.compile(
        r"(?<![\w.+-])(?:(?:\+?1[ .-])?(?:\([2-9]\d{2}\) ?|[2-9]\d{2}[ .-])\d{3}[ .-]\d{4}"
        r"|\+\d{1,3}[ .-]?\d{6,12})(?![\w-])"
    ),
    # A moment with a time of day is a timestamp of a program, not somebody's date.
    "date": re.compile(
        r"(?<![\d-])(?:(?:19|20)\d{2}-[01]\d-[0-3]\d(?![\d-]|[T ]\d{2}:)|[01]?\d/[0-3]?\d/(?:19|20)\d{2}(?!\d))"
    ),
}


def looks_like(column: str) -> str | None:
    """Which identifier a column's name suggests: ``phone2`` a telephone number, ``member_no`` a health plan's."""
    words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", column).lower()
    words = re.sub(r"\d+", "_", words).strip("_")
    found = [key for key, pattern in PATTERNS.items() if pattern.search(words)]
    # An ``email_address`` is an e-mail address, and a ``contact_phone`` a telephone number.
    return min(found, key=lambda key: (key in GENERAL, found.index(key)), default=None)


def shapes_in(text: str) -> set[str]:
    """Which shapes occur in a raw value."""
    return {key for key, pattern in SHAPES.items() if pattern.search(text)}
