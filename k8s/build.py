"""Build the container image with Docker, or with buildah where no Docker engine runs: `python3 k8s/build.py --help`.

Standard library only. buildah's containers get this machine's pip configuration, and what it points at, so that a
mirror or a company's certificate works inside as it does outside; nothing of it stays in the image.
"""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parent.parent
STAND_IN = "localhost/skipvit-python-stand-in:bookworm"


def main(argv: list[str] | None = None) -> int:
    """Build one target; returns the builder's exit code."""
    parser = argparse.ArgumentParser("python3 k8s/build.py", description=__doc__.partition("\n\n")[0])
    parser.add_argument("--target", choices=("cpu", "gpu", "loadtest"), default="cpu")
    parser.add_argument("--tag", default="skipvit", help="name of the image")
    parser.add_argument("--extras", default="", help="what the service gets besides: otel, grpc or otel,grpc")
    parser.add_argument(
        "--stand-in-base",
        action="store_true",
        help="where the base image can't be pulled, make one of Debian's own Python with debootstrap (root): to test "
        "the Dockerfile, not to ship",
    )
    arguments = parser.parse_args(argv)
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    revision = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    options = ["--target", arguments.target, "--tag", arguments.tag, "--build-arg", f"VERSION={version}"]
    options += ["--build-arg", f"REVISION={revision.stdout.strip() or 'unknown'}"]
    if arguments.extras:
        options += ["--build-arg", f"EXTRAS={arguments.extras}"]
    if has_docker():
        return subprocess.run(["docker", "build", *options, str(ROOT)], check=False).returncode
    if not shutil.which("buildah"):
        print("build: neither a Docker engine nor buildah is here: apt-get install buildah", file=sys.stderr)
        return 2
    if arguments.stand_in_base and not buildah("pull", "--quiet", base_image(arguments.target)):
        image = "CUDA" if arguments.target == "gpu" else "PYTHON"
        make_stand_in()
        options += ["--build-arg", f"{image}_IMAGE={STAND_IN}", "--build-arg", f"{image}_DIGEST="]
    with tempfile.TemporaryDirectory() as folder:
        # chroot and the host's network: what works without a user namespace, a bridge or iptables. The format docker
        # keeps HEALTHCHECK, which the OCI format has no place for.
        how = ["--isolation", "chroot", "--network", "host", "--format", "docker", "--layers"]
        command = ["buildah", "bud", *how, *pip_volumes(Path(folder)), *options, str(ROOT)]
        return subprocess.run(command, env=storage(), check=False).returncode


def has_docker() -> bool:
    """Is there a Docker engine, not only its client?"""
    if not shutil.which("docker"):
        return False
    return subprocess.run(["docker", "info"], capture_output=True, check=False).returncode == 0


def storage() -> dict[str, str]:
    """The environment for buildah and podman: layers as overlays, or every layer would be a full copy."""
    return {"STORAGE_DRIVER": "overlay", **os.environ}


def base_image(target: str) -> str:
    """The base image that the Dockerfile names for a target, with its digest."""
    lines = (ROOT / "Dockerfile").read_text().splitlines()
    arguments = dict(
        line.removeprefix("ARG ").split("=", 1) for line in lines if line.startswith("ARG ") and "=" in line
    )
    name = "CUDA" if target == "gpu" else "PYTHON"
    return arguments[f"{name}_IMAGE"] + arguments[f"{name}_DIGEST"]


def buildah(*arguments: str) -> bool:
    """Run buildah quietly; did it succeed?"""
    return subprocess.run(["buildah", *arguments], env=storage(), capture_output=True, check=False).returncode == 0


def make_stand_in() -> None:
    """An image laid out like python:slim, of Debian's packages, unless it is here from the last time."""
    if buildah("inspect", STAND_IN):
        return
    print("build: no registry answers: building on Debian's own Python, which is good for tests only", file=sys.stderr)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        packages = "--include=python3,python3-pip,ca-certificates"
        command = ["debootstrap", "--variant=minbase", packages, "bookworm", str(root), *debian_mirror()]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        for name in ("python3", "python"):
            (root / "usr/local/bin" / name).symlink_to("/usr/bin/python3")
        for archive in (root / "var/cache/apt/archives").glob("*.deb"):
            archive.unlink()
        shutil.rmtree(root / "var/lib/apt/lists")
        tar = Path(folder) / "root.tar"
        subprocess.run(["tar", "--numeric-owner", "-cf", str(tar), "-C", str(root), "."], check=True)
        subprocess.run(["podman", "import", "--quiet", str(tar), STAND_IN], env=storage(), check=True)


def debian_mirror() -> list[str]:
    """Where this machine's apt gets bookworm from; nothing, so debootstrap's default, on another distribution."""
    command = ["apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(COMPONENT)", "Identifier: Packages"]
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout.splitlines()
    return [line.split()[0] for line in listed if line.split()[1:] == ["bookworm", "main"]][:1]


def pip_volumes(folder: Path) -> list[str]:
    """Mounts that give a build this machine's pip configuration: the settings, and every local path they name."""
    listed = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    settings: dict[str, str] = {}
    for line in listed.stdout.splitlines():
        key, _, value = line.partition("=")
        settings.setdefault(key.rpartition(".")[2], shlex.split(value)[0])  # the environment's come first
    (folder / "pip.conf").write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in settings.items()))
    words = [word for value in settings.values() for word in value.split()]
    # An index of files (file:///mirror/simple) links to packages that lie beside it.
    paths = [Path(word.removeprefix("file://")).parent if word.startswith("file://") else Path(word) for word in words]
    local = {path for path in paths if path.is_absolute() and path != Path("/") and path.exists()}
    mounts = [f"{folder / 'pip.conf'}:/etc/pip.conf:ro", *(f"{path.resolve()}:{path}:ro" for path in sorted(local))]
    return [word for mount in mounts for word in ("--volume", mount)]


if __name__ == "__main__":
    sys.exit(main())
