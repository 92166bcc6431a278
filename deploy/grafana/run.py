"""Prometheus, and Grafana where it is installed, for the Ray head of this machine, without Docker; Ctrl-C ends both.

make dashboards        (RAY_FILES: the folder of Ray's files, where it is not that of `make head`)
"""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

HERE = Path(__file__).resolve().parent
PROMETHEUS, GRAFANA = "127.0.0.1:9090", "127.0.0.1:3000"
#: Where packages of Grafana put what it reads.
GRAFANA_HOME = Path("/usr/share/grafana")


def main() -> int:
    """Start them, and wait. Return the exit code."""
    ray_files = Path(os.environ.get("RAY_FILES") or f"/tmp/ray-{os.getuid()}/ray")
    if (prometheus := shutil.which("prometheus")) is None:
        print("Prometheus is not installed; on Debian and Ubuntu: apt-get install prometheus", file=sys.stderr)
        return 2
    if not (ray_files / "prom_metrics_service_discovery.json").exists():
        print(f"there is no Ray head with files in {ray_files}; run `make head`, or set RAY_FILES", file=sys.stderr)
        return 2
    grafana = shutil.which("grafana")
    with TemporaryDirectory(prefix="rayexp-dashboards-") as name:
        folder = adapted(Path(name), ray_files)
        log = folder / "prometheus.log"
        running = {log: _started([prometheus, *prometheus_options(folder)], log)}
        print(f"Prometheus: http://{PROMETHEUS}", flush=True)
        if grafana:
            log = folder / "grafana.log"
            running[log] = _started([grafana, "server", f"--homepath={GRAFANA_HOME}"], log, grafana_settings(folder))
            print(f"Grafana: http://{GRAFANA}/d/rayexp", flush=True)
        else:
            print("Grafana is not installed, so there are no panels; Prometheus draws any one metric", flush=True)
        return _waited(running)


def adapted(folder: Path, ray_files: Path) -> Path:
    """Write the files of the compose file for a machine without its mounts; return the folder that they are in."""
    places = {"/etc/grafana/dashboards": str(folder / "dashboards"), "/ray/": f"{ray_files}/"}
    for source in (HERE / "prometheus.yml", *HERE.glob("provisioning/*/*.yaml")):
        text = source.read_text(encoding="utf-8")
        for mounted, here in places.items():
            text = text.replace(mounted, here)
        target = folder / source.relative_to(HERE)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text, encoding="utf-8")
    (folder / "dashboards").mkdir()
    shutil.copy(HERE / "rayexp.json", folder / "dashboards")
    return folder


def prometheus_options(folder: Path) -> list[str]:
    """Return the command line of Prometheus, whose data go when it does."""
    return [
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={PROMETHEUS}",
    ]


def grafana_settings(folder: Path) -> dict[str, str]:
    """Return Grafana's settings, in its environment: those of the compose file, and its folders."""
    host, _, port = GRAFANA.partition(":")
    return {
        "GF_SERVER_HTTP_ADDR": host,
        "GF_SERVER_HTTP_PORT": port,
        "GF_AUTH_ANONYMOUS_ENABLED": "true",
        "GF_AUTH_ANONYMOUS_ORG_ROLE": "Viewer",
        "GF_SECURITY_ALLOW_EMBEDDING": "true",
        "GF_PATHS_PROVISIONING": str(folder / "provisioning"),
        "GF_PATHS_DATA": str(folder / "grafana"),
        "GF_PATHS_LOGS": str(folder / "grafana"),
    }


def _started(command: list[str], log: Path, settings: dict[str, str] | None = None) -> subprocess.Popen[bytes]:
    with log.open("wb") as file:
        return subprocess.Popen(command, env=os.environ | (settings or {}), stdout=file, stderr=subprocess.STDOUT)


def _waited(running: dict[Path, subprocess.Popen[bytes]]) -> int:
    """Wait for Ctrl-C, or for one to end by itself, and end them all. running: by their logs. Return the exit code."""
    try:
        while True:
            time.sleep(1)
            for log, process in running.items():
                if process.poll() is not None:
                    last = log.read_text(errors="replace").strip().rpartition("\n")[2]
                    print(f"{log.stem} ended by itself: {last}", file=sys.stderr)
                    return 1
    except KeyboardInterrupt:
        return 0
    finally:
        for process in running.values():
            process.terminate()
            process.wait(timeout=30)


if __name__ == "__main__":
    sys.exit(main())
