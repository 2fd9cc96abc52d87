"""The bootstrap server that a prefill worker brings along when it was given none, as a process of its own."""

from __future__ import annotations

import asyncio
import signal

from baton_bootstrap.errors import SetupError
from baton_bootstrap.server import BootstrapServer, ServerConfig
from baton_serving import logs
from baton_serving.errors import ConfigError
from baton_serving.runtime.bootstrap_access import bootstrap_token
from baton_serving.runtime.process import Reporter


def bootstrap_main(host: str, port: int, log_level: str, reporter: Reporter) -> None:
    """Entry point of the process; serves until SIGTERM."""
    logs.configure("bootstrap", log_level)
    asyncio.run(_serve(ServerConfig(host=host, port=port, token=bootstrap_token()), reporter))


async def _serve(config: ServerConfig, reporter: Reporter) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    server = BootstrapServer(config)
    try:
        await server.start()
    except SetupError as error:
        raise ConfigError(f"--disaggregation-bootstrap-port: {error}") from error
    reporter.ready({"port": server.port})
    await stopping.wait()
    await server.stop()
