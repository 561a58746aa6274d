"""A link that is cut for a while: who may, and that it comes back whatever becomes of who cut it."""

import shutil

from tests.launch.networks import in_network_of_its_own
from vitscale_launch.link import why_not


def test_an_interface_that_is_not_there_is_told() -> None:
    told = "this machine has no such network interface" if shutil.which("ip") else "the command `ip` (iproute2) is missing"
    assert str(why_not("nosuch0")).startswith(told)


def test_who_may_not_is_told_beforehand_and_nothing_changes() -> None:
    program = """
from vitscale_launch.link import why_not
assert "or it is down" in why_not("other")
assert why_not("probe") is None
assert is_up()
os.setuid(65534)
print(why_not("probe"))
assert is_up()
os.environ["PATH"] = "/nowhere"
print(why_not("probe"))
"""
    no_right, no_command = in_network_of_its_own(program).splitlines()
    assert no_right == "taking an interface down needs root: RTNETLINK answers: Operation not permitted"
    assert no_command == "the command `ip` (iproute2) is missing on this machine"


def test_it_goes_down_later_and_comes_back_with_its_routes_though_all_its_kin_are_killed() -> None:
    program = """
from vitscale_launch.link import take_down_later
def routes():
    return subprocess.run(["ip", "route", "show"], capture_output=True, text=True, check=True).stdout
subprocess.run(["ip", "link", "set", "other", "up"], check=True)
subprocess.run(["ip", "addr", "add", "10.9.9.1/24", "dev", "probe"], check=True)
subprocess.run(["ip", "route", "add", "default", "via", "10.9.9.2", "metric", "100"], check=True)
before = routes()
pid = os.fork()
if not pid:
    os.setsid()
    take_down_later("probe", after_seconds=0.5, seconds=1.0)
    assert is_up(), "there is time to say so"
    time.sleep(60)
wait_until(lambda: not is_up())
assert not open(f"/proc/{pid}/task/{pid}/children").read().split(), "it belongs to nobody"
os.killpg(pid, 9)
os.waitpid(pid, 0)
assert not is_up() and not routes()
wait_until(is_up)
wait_until(lambda: routes() == before)
print("done")
"""
    assert in_network_of_its_own(program) == "done\n"
