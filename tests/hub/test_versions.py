"""Versions that DepthVLM was tested with: training holds to them, a checkpoint's own code tells of others."""

import warnings
from importlib.metadata import version

import pytest
from depthvlm.modeling_depthvlm.configuration_depthvlm import TESTED_TRANSFORMERS, version_note
from depthvlm.training.versions import TESTED, check_versions, version_range

OLD = [("trl", "1.15.9"), ("transformers", "5.17.3"), ("transformers", "4.57.1")]
NEW = [("trl", "1.17.0"), ("transformers", "5.24.0"), ("transformers", "6.0.0")]
RIGHT = ["5.18.0", "5.20.1", "5.23.0", "5.23.9", "5.18.0.dev0"]


@pytest.mark.parametrize("transformers", RIGHT)
def test_inside_the_range_nothing_is_said(transformers):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_versions({"trl": "1.16.0", "transformers": transformers})
    assert version_note(transformers) is None


@pytest.mark.parametrize(("package", "found"), OLD)
def test_too_old_is_an_error_with_the_range_and_the_remedy(package, found):
    with pytest.raises(ImportError, match="too old") as error:
        check_versions({"trl": "1.16.0", "transformers": "5.23.0", package: found})
    for said in (f"{package} {version_range(package)}", f'pip install "{package}>={TESTED[package][0]}"', found):
        assert said in str(error.value)


@pytest.mark.parametrize(("package", "found"), NEW)
def test_too_new_is_a_warning_with_the_range(package, found):
    with pytest.warns(UserWarning, match="newer") as record:
        check_versions({"trl": "1.16.0", "transformers": "5.23.0", package: found})
    [message] = [str(warning.message) for warning in record]
    assert message.startswith(f"{package} {found} ")
    assert version_range(package) in message


def test_the_installed_ones_are_what_is_checked(monkeypatch):
    monkeypatch.setitem(TESTED, "trl", ("999.0", "999.1"))
    with pytest.raises(ImportError, match=rf"999\.0 to 999\.1, and trl {version('trl')} is installed"):
        check_versions()


def test_untested_versions():
    for installed, told in (("5.17.3", "older. Update it to 5.18 or newer"), ("6.0.0", "is newer")):
        note = str(version_note(installed))
        assert told in note
        assert f"5.18 to 5.23, and {installed} is installed" in note


def test_training_was_tested_with_the_same():
    assert TESTED["transformers"] == tuple(f"{major}.{minor}" for major, minor in TESTED_TRANSFORMERS)
