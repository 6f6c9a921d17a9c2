"""``xray audit``: the account."""

from typing import Annotated

import typer

from streaming.settings import load_settings
from xray.commands.options import Json, Since, Until, read_place
from xray.console import print_json, step


def audit(
    since: Since = None,
    until: Until = None,
    from_: Annotated[
        list[str] | None,
        typer.Option("--from", metavar="PARTITION@OFFSET", help="First offset of a partition; repeatable."),
    ] = None,
    to: Annotated[
        list[str] | None,
        typer.Option("--to", metavar="PARTITION@OFFSET", help="Offset of a partition to end before; repeatable."),
    ] = None,
    json_: Json = False,
) -> None:
    """Draw up the account: is every consumed image a prediction or a dead letter? Exit code 1 when it is not.

    Exit code 3 when no stream has run from this XRAY_HOME: what was consumed is known from its checkpoint alone.

    Of all images, or of those that the broker received in a time (--since 2h) or that have certain offsets (--from
    0@1200 --to 0@1300). With --from or --to only the partitions that they name are in the account.
    """
    from streaming.account.audit import Scope, audit_stream
    from xray.views import show_account

    settings = load_settings()
    scope = Scope(since, until, dict(map(read_place, from_ or ())), dict(map(read_place, to or ())))
    with step("reading topics and tables"):
        account = audit_stream(settings, scope)
    if json_:
        print_json(account.to_dict())
    else:
        show_account(account)
    if not account.balanced:
        raise typer.Exit(1)
