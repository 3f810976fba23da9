"""All suites by name."""

from ar_t2i.evaluation.suites import Suite, basic, binding, geneval, multigen, optigen, spatial
from ar_t2i.evaluation.suites.parti import parti_suite

SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        basic.SUITE,
        multigen.suite("scenes"),
        optigen.suite("scenes"),
        binding.suite("scenes"),
        geneval.suite("scenes"),
        spatial.suite("scenes"),
        multigen.suite("photos"),
        optigen.suite("photos"),
        binding.suite("photos"),
        geneval.suite("photos"),
        spatial.suite("photos"),
    )
}
"""Those that need no file: `find_suite` also knows "photos/parti:FILE"."""

PARTI = "photos/parti:"


def find_suite(name: str) -> Suite:
    """The suite of a name: a key of `SUITES`, or "photos/parti:" and what `parti_suite` takes.

    Raises:
        ValueError: there is none of this name.
    """
    if name.startswith(PARTI) and name != PARTI:
        return parti_suite(name.removeprefix(PARTI))
    if name not in SUITES:
        raise ValueError(f"suite {name!r} is not known; use one of {', '.join(SUITES)}, {PARTI}FILE")
    return SUITES[name]
