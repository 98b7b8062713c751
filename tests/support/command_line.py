"""The `depthvlm` command in this process."""

from typer.testing import CliRunner, Result

from depthvlm.cli.app import app


def run(*arguments: object, code: int | None = 0) -> Result:
    """Run `depthvlm ARGUMENTS`. It must end with `code`, or anyhow where that is None."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert code in (None, result.exit_code), result.output
    return result
