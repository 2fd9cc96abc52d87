from __future__ import annotations

import psutil
import torch

from baton_serving.runtime.host import probe_host


def test_the_machine_is_seen_as_it_is() -> None:
    host = probe_host()
    assert 0 < host.host_memory <= psutil.virtual_memory().total
    assert host.cuda_devices == (torch.cuda.device_count() if torch.cuda.is_available() else 0)
    assert (host.device_memory > 0) == (host.cuda_devices > 0)
    assert 0 <= host.entropy < 2**31
