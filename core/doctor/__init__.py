"""The doctor: which safeguards of 45 CFR 164.312 hold on the live database, each with its evidence."""

from __future__ import annotations

from core.doctor.check import RULES, SPECIFICATIONS, Finding, Verdict
from core.doctor.examination import Examination, check_names, examine
from core.doctor.live import PATIENCE

__all__ = ["PATIENCE", "RULES", "SPECIFICATIONS", "Examination", "Finding", "Verdict", "check_names", "examine"]
