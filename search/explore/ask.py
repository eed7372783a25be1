"""What a study calls for now: its explorer, then its leaders."""

from search.results.tables import ResultsError
from search.study.explorer import Chooser, PlannedTrial, Tables
from search.study.space_file import SpaceFileError
from search.study.study import Study


def ask(study: Study, tables: Tables, room: int) -> list[PlannedTrial]:
    """All that is called for now and was not before; noted in `tables.asked`.

    Asks on while what comes has ended already: a command that goes on with a study comes to where
    it was. Leaders are asked once the explorer has nothing more to say.
    """
    choosers = [study.explore, *([study.leaders] if study.leaders else [])]
    called_for: list[PlannedTrial] = []
    for chooser in choosers:
        while new := _next(chooser, study, tables, room):
            tables.asked.extend(new)
            called_for += new
            if any(trial.key not in tables.ended for trial in new):
                return called_for
    return called_for


def _next(chooser: Chooser, study: Study, tables: Tables, room: int) -> list[PlannedTrial]:
    try:
        return chooser.next(study, tables, room)
    except ResultsError:
        raise
    except ValueError as error:
        raise SpaceFileError(str(error)) from error


def total(study: Study, tables: Tables) -> int:
    """How many trials the study has, as far as the tables tell; one that is asked twice is one."""
    leading = study.leaders.total(study, tables) if study.leaders else 0
    return study.explore.total(study, tables) + leading
