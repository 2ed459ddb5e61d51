"""`bitnet system`: this machine."""

from __future__ import annotations

from bitnet.cli.groups import examples, group
from bitnet.cli.system_devices import devices
from bitnet.cli.system_doctor import doctor
from bitnet.cli.system_info import info

app = group("Look at this machine: settings, devices, and whether all is well.", examples("bitnet system doctor"))
app.command("info", epilog=examples("bitnet system info", "bitnet system info --threads 2 --format json"))(info)
app.command("devices", epilog=examples("bitnet system devices"))(devices)
app.command("doctor", epilog=examples("bitnet system doctor"))(doctor)
