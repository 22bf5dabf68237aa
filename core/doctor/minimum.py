"""The minimum necessary, 164.502(b): to which roles the plaintext of which columns is shown."""

from __future__ import annotations

from core.access.minimum import shown_to
from core.doctor.check import Notes, check
from core.doctor.live import Live
from core.errors import ConfigurationError

__all__: list[str] = []


@check("164.502(b)")
async def minimum_necessary(live: Live, notes: Notes) -> None:
    """Threat: a name that is misspelt in a class keeps nothing from anybody."""
    narrowed: list[str] = []
    for name, table in live.declared().items():
        try:
            narrowed += [
                f"{', '.join(columns)} of {name} for {', '.join(roles) or 'no role'}"
                for columns, roles in shown_to(table._meta.columns)
            ]
        except ConfigurationError as error:
            notes.fail(str(error), subject=f"table {name}")
    everybody = "Every role that sees a row is shown all of it; shown_to on a table's class says what is for some."
    some = f"Opened for some roles alone, as this application declares: {'; '.join(narrowed)}."
    notes.end(f"{some if narrowed else everybody} Whether that is the minimum necessary, only you can tell.")
