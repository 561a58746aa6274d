"""What Ray's processes find in their environment."""

from vitscale_launch.environment import prepare_environment, worker_variables


def test_what_the_user_set_stays() -> None:
    environment = {"RAY_DEDUP_LOGS": "1", "RAY_AUTH_MODE": "disabled"}
    prepare_environment(environment, local=True)
    assert environment["RAY_DEDUP_LOGS"] == "1"
    assert environment["RAY_AUTH_MODE"] == "disabled"
    assert environment["RAY_DISABLE_WORKER_LOG_PREFIX"] == "1"
    assert "RAY_AUTH_TOKEN" not in environment


def test_a_local_cluster_has_a_token_of_its_own() -> None:
    first: dict[str, str] = {}
    second: dict[str, str] = {}
    for environment in (first, second):
        prepare_environment(environment, local=True)
    assert first["RAY_AUTH_MODE"] == "token"
    assert len(first["RAY_AUTH_TOKEN"]) == 64
    assert first["RAY_AUTH_TOKEN"] != second["RAY_AUTH_TOKEN"]


def test_an_existing_cluster_has_its_own_token() -> None:
    environment: dict[str, str] = {}
    prepare_environment(environment, local=False)
    assert environment["RAY_AUTH_MODE"] == "token"
    assert "RAY_AUTH_TOKEN" not in environment
    given = {"RAY_AUTH_TOKEN_PATH": "/etc/ray/token"}
    prepare_environment(given, local=True)
    assert "RAY_AUTH_TOKEN" not in given


def test_workers_elsewhere_get_only_what_concerns_them() -> None:
    environment = {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "4", "HOME": "/root", "RAY_AUTH_TOKEN": "secret"}
    assert worker_variables(environment) == {"GLOO_SOCKET_IFNAME": "eth0", "OMP_NUM_THREADS": "4"}


def test_only_a_local_cluster_is_said_to_have_no_api_server() -> None:
    local: dict[str, str] = {}
    existing: dict[str, str] = {}
    prepare_environment(local, local=True)
    prepare_environment(existing, local=False)
    assert "RAY_API_SERVER_ADDRESS" in local
    assert "RAY_API_SERVER_ADDRESS" not in existing
