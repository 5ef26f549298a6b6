from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest

from client.metered import MeteredNetwork, NetworkSettings
from client.sampler import Keep
from client.settings import DeviceSettings
from quantization.errors import ConfigurationError

DIGEST = "ab" * 32

FULL = f"""
[device]
class = "arm-a53"
model_digest = "{DIGEST}"
threads = 2
gives_way = false

[limits]
disk_bytes = 100_000_000
free_bytes = 0
metered_bytes = 1

[network]
metered_command = ["/usr/bin/is-metered", "--quick"]
remember_seconds = 5

[trial]
least_seconds = 1
least_runs = 2
longest_seconds = 3
most_failures = 4
latency_ratio = 5.5

[sample]
max_bytes = 1000
rate = 1
keep = "uniform"
write_seconds = 10.0

[judge]
every = 7
share = 0.5
batch = 3
wait_seconds = 2

[report]
interval_seconds = 9
longest_backoff_seconds = 90
spool_bytes = 1000
spool_reports = 10

[pace]
check_seconds = 100
first_backoff_seconds = 2
longest_backoff_seconds = 20
defer_seconds = 30
longest_spread_seconds = 40

[local]
workers = 2
waiting = 3
max_request_bytes = 4096
remembered_samples = 5
group_access = true
"""


def written(path: Path, text: str) -> Path:
    file = path / "client.toml"
    file.write_text(text)
    return file


def test_every_setting_can_be_written_in_the_file(tmp_path: Path) -> None:
    settings = DeviceSettings.from_toml(written(tmp_path, FULL))
    defaults = DeviceSettings("arm-a53")
    for table in fields(DeviceSettings):
        value, default = getattr(settings, table.name), getattr(defaults, table.name)
        hint = get_type_hints(DeviceSettings)[table.name]
        if hasattr(hint, "__dataclass_fields__"):
            same = [
                one.name for one in fields(hint) if getattr(value, one.name) == getattr(default, one.name)
            ]
            assert same == (["metered"] if table.name == "network" else [])
        elif table.name != "device_class":
            assert value != default
    assert settings.sample.keep is Keep.UNIFORM
    assert settings.network.metered_command == ("/usr/bin/is-metered", "--quick")
    assert not settings.is_quiet


def test_options_win_over_the_file_and_what_is_missing_has_defaults(tmp_path: Path) -> None:
    file = written(tmp_path, '[device]\nclass = "a"\nthreads = 3\n')
    settings = DeviceSettings.from_toml(file, device_class="b", threads=None, model_digest=DIGEST)
    assert settings == DeviceSettings("b", DIGEST, threads=3)
    assert DeviceSettings.from_tables({}, device_class="c") == DeviceSettings("c")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "class is missing"),
        ("[device]\nclass = 3", r"\[device\] class is str, not 3"),
        (
            '[device]\nclass = "a"\nclas = "b"',
            "unknown key clas; known are class, gives_way, model_digest, threads",
        ),
        ('[device]\nclass = ""', "device class"),
        ('[device]\nclass = "a"\nmodel_digest = "xyz"', "digest"),
        ('[device]\nclass = "a"\nthreads = 0', "threads is 1 to 256"),
        ('[device]\nclass = "a"\nthreads = true', "threads is int, not True"),
        ('[device]\nclass = "a"\n[limit]\n', "unknown table or key limit; known are device, limits"),
        ('device = "a"', "device is a table"),
        ('[device]\nclass = "a"\n[sample]\nrate = 1.5', "rate 0 to 1"),
        ('[device]\nclass = "a"\n[sample]\nkeep = "best"', "keep is one of uniform, latest, not 'best'"),
        ('[device]\nclass = "a"\n[trial]\nleast_seconds = nan', "least_seconds is float, not nan"),
        ('[device]\nclass = "a"\n[trial]\nlatency_ratio = 1', "latency ratio"),
        ('[device]\nclass = "a"\n[network]\nmetered_command = "x"', "a list of texts"),
        ('[device]\nclass = "a"\n[network]\nmetered = true\nmetered_command = ["x"]', "never be asked"),
        ('[device]\nclass = "a"\n[judge]\nshare = 0', "share above 0"),
        ('[device]\nclass = "a"\n[pace]\ncheck_seconds = 0', "above 0 seconds: check_seconds"),
        ('[device]\nclass = "a"\n[report]\ninterval_seconds = 0', "times must be above 0"),
        ('[device]\nclass = "a"\n[local]\nworkers = 0', "workers is 1 or more"),
        ('[device]\nclass = "a"\n[local]\nremembered_samples = 0', "remembered_samples is 1 to"),
        ("[device", "is not TOML"),
    ],
)
def test_what_cannot_be_used_is_refused_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        DeviceSettings.from_toml(written(tmp_path, text))


def test_files_that_cannot_be_read_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="No such file"):
        DeviceSettings.from_toml(tmp_path / "none.toml")
    with pytest.raises(ConfigurationError, match="larger than"):
        DeviceSettings.from_toml(written(tmp_path, "#" * (2 << 20)))


def test_background_work_gives_way_only_where_inference_has_no_helpers() -> None:
    assert DeviceSettings("a").is_quiet
    assert not DeviceSettings("a", threads=2).is_quiet
    assert not DeviceSettings("a", gives_way=False).is_quiet


@pytest.mark.parametrize(
    ("command", "is_metered"),
    [(("true",), True), (("false",), False), (("sh", "-c", "exit 7"), True), (("/no/such/program",), True)],
)
def test_a_command_tells_whether_the_network_is_metered(command: tuple[str, ...], is_metered: bool) -> None:
    assert MeteredNetwork(NetworkSettings(metered_command=command))() is is_metered


def test_the_answer_of_the_command_holds_for_a_while(tmp_path: Path) -> None:
    now, flag = [0.0], tmp_path / "metered"
    network = MeteredNetwork(NetworkSettings(metered_command=("test", "-e", str(flag))), lambda: now[0])
    assert not network()
    flag.touch()
    assert not network()
    now[0] = 61.0
    assert network()


def test_without_a_command_the_owner_says_it_once() -> None:
    assert MeteredNetwork(NetworkSettings(metered=True))()
    assert not MeteredNetwork(NetworkSettings())()
