"""What a worker sees of its machine: versions, GPU, clocks, variables that change kernels."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from typing import Any

import pynvml
import torch
from pydantic import JsonValue

_PACKAGES = ("torch", "triton", "liger-kernel", "cut-cross-entropy", "torchtune", "torchao", "numpy", "pydantic")
_VARIABLE_PREFIXES = (
    "CCE_", "CUBLAS_", "CUDA_", "LIGER_", "NVIDIA_", "OMP_", "PYTORCH_", "TORCH", "TRITON_",
)  # fmt: skip


def describe_environment() -> dict[str, JsonValue]:
    """Everything about this machine that could explain a number. Key names carry units."""
    described: dict[str, JsonValue] = {
        "python": platform.python_version(),
        "system": platform.platform(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "variables": {k: v for k, v in sorted(os.environ.items()) if k.startswith(_VARIABLE_PREFIXES)},
        "cpu_cores": os.cpu_count(),
        "cuda_available": torch.cuda.is_available(),
        "cuda": torch.version.cuda,
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        described["gpu"] = {
            "name": properties.name,
            "uuid": str(properties.uuid),
            "compute_capability": [properties.major, properties.minor],
            "multiprocessors": properties.multi_processor_count,
            "l2_bytes": properties.L2_cache_size,
            "memory_bytes": properties.total_memory,
            **_nvml_facts(),
        }
    return described


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def nvml_handle() -> Any | None:
    """NVML's handle of the GPU that torch calls 0, or None where the driver offers no NVML."""
    try:
        pynvml.nvmlInit()
        uuid = f"GPU-{torch.cuda.get_device_properties(0).uuid}"
        return pynvml.nvmlDeviceGetHandleByUUID(uuid)
    except pynvml.NVMLError:
        return None


def _nvml_facts() -> dict[str, JsonValue]:
    handle = nvml_handle()
    if handle is None:
        return {"nvml": None}
    return {
        "driver": pynvml.nvmlSystemGetDriverVersion(),
        "max_sm_clock_mhz": pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "max_memory_clock_mhz": pynvml.nvmlDeviceGetMaxClockInfo(handle, pynvml.NVML_CLOCK_MEM),
        "memory_bus_bits": _memory_bus_bits(handle),
        "power_limit_w": pynvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
    }


def _memory_bus_bits(handle: Any) -> int | None:
    """Width of the memory bus, None where the driver does not tell."""
    try:
        return int(pynvml.nvmlDeviceGetMemoryBusWidth(handle))
    except pynvml.NVMLError:
        return None


def gpu_state(handle: Any | None) -> dict[str, float | int]:
    """SM clock, power, temperature and throttle bits at this moment; empty without NVML."""
    if handle is None:
        return {}
    return {
        "sm_clock_mhz": pynvml.nvmlDeviceGetClockInfo(handle, pynvml.NVML_CLOCK_SM),
        "power_w": pynvml.nvmlDeviceGetPowerUsage(handle) / 1e3,
        "temperature_c": pynvml.nvmlDeviceGetTemperature(handle, pynvml.NVML_TEMPERATURE_GPU),
        "throttle_reasons": pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle),
    }
