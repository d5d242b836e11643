"""The device that an experiment runs on, as the heads of its records name it."""

from typing import Any

from smoothlab.errors import BadInput


def machine(experiment: Any) -> dict[str, Any]:
    """Facts that records cannot know by themselves: the device, and how torch computes on it."""
    import torch

    threads = {"threads": torch.get_num_threads()}
    device = getattr(experiment, "device", None)
    if device is None:
        return threads
    from smoothlab.llm.memory import check_device
    from smoothlab.llm.models import file_identity

    fields = {"device": device} | threads
    try:
        file = file_identity(getattr(experiment, "model", "micro"))
        if file is not None:
            fields["model_file"] = file
        check_device(device)
    except BadInput:  # the experiment says so, unless its records are finished
        return fields
    if device.startswith("cuda"):
        return fields | {"gpu": torch.cuda.get_device_name(device)}
    return fields | {"cpu_capability": torch.backends.cpu.get_cpu_capability()}
