"""A language host for Pulumi's engine, as far as this project's program needs one.

Pulumi's own Python host is in no package registry; the command line and the engine are, as a Go module. The engine
attaches to a host that runs already by PULUMI_DEBUG_LANGUAGES.
"""

from __future__ import annotations

import multiprocessing
import platform
import signal
import sys
from collections.abc import Iterator
from multiprocessing import resource_tracker
from typing import Any, Final

from google.protobuf import empty_pb2
from pulumi.runtime.proto import language_pb2, language_pb2_grpc, plugin_pb2

from lab.aws.resources import TYPES
from lab.region import program

# Programs run in children of one process that has imported what takes seconds: the classes of the provider's packages.
_PROCESSES: Final = multiprocessing.get_context("forkserver")
_PROCESSES.set_forkserver_preload(
    [
        f"pulumi_aws.{package}.{module}"
        for package in sorted(
            {type_.split(":")[1].split("/")[0] for type_ in TYPES if type_.startswith("aws:")}
        )
        for module in ("_inputs", "outputs")
    ]
)


class LanguageHost(language_pb2_grpc.LanguageRuntimeServicer):
    """Runs programs with the interpreter that runs this one, so in the environment that `make` has built.

    What a program prints comes out where this process prints.
    """

    def __init__(self) -> None:
        self._engine = ""

    def Handshake(self, request: Any, _context: Any) -> Any:
        """Remember the address of the engine, to which the program sends its log."""
        self._engine = request.engine_address
        return language_pb2.LanguageHandshakeResponse()

    def GetPluginInfo(self, _request: Any, _context: Any) -> Any:
        """The version of this host."""
        return plugin_pb2.PluginInfo(version="1.0.0")

    def About(self, _request: Any, _context: Any) -> Any:
        """The interpreter."""
        return language_pb2.AboutResponse(executable=sys.executable, version=platform.python_version())

    def GetRequiredPackages(self, _request: Any, _context: Any) -> Any:
        """None: the providers run already."""
        return language_pb2.GetRequiredPackagesResponse()

    def GetRequiredPlugins(self, _request: Any, _context: Any) -> Any:
        """None: the providers run already."""
        return language_pb2.GetRequiredPluginsResponse()

    def RuntimeOptionsPrompts(self, _request: Any, _context: Any) -> Any:
        """None."""
        return language_pb2.RuntimeOptionsResponse()

    def InstallDependencies(self, _request: Any, _context: Any) -> Iterator[Any]:
        """Nothing to install."""
        return iter(())

    def Cancel(self, _request: Any, _context: Any) -> Any:
        """The engine ends programs itself: it closes what they talk to."""
        return empty_pb2.Empty()

    def Run(self, request: Any, context: Any) -> Any:
        """Run the program to its end; `bail` where it has told the user what is wrong."""
        directory = request.info.program_directory or request.pwd
        given = {
            "directory": directory,
            "config": dict(request.config),
            "secret_keys": list(request.configSecretKeys),
            "settings": {
                "project": request.project,
                "stack": request.stack,
                "organization": request.organization,
                "root_directory": request.info.root_directory,
                "parallel": request.parallel,
                "dry_run": request.dryRun,
                "monitor": request.monitor_address,
                "engine": self._engine,
            },
        }
        process = _PROCESSES.Process(target=program.run, kwargs=given)
        # Ctrl-C ends the program (program.run), and not the process of which it is a child: what this thread starts
        # inherits the mask. Python's own tracker would take it away again if it were started later.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        process.start()
        # An engine that has gone would leave a program that waits for its answers.
        if not context.add_callback(process.kill):
            process.kill()
        process.join()
        if process.exitcode == program.TOLD_THE_USER:
            return language_pb2.RunResponse(bail=True)
        if process.exitcode:
            return language_pb2.RunResponse(error=f"the program ended with status {process.exitcode}")
        return language_pb2.RunResponse()
