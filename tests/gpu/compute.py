"""A computation on a GPU with nothing but the driver's library: what a task of these tests does."""

import ctypes
import uuid
from typing import Any

KERNEL = b"""
.version 6.0
.target sm_50
.address_size 64
.visible .entry multiply(.param .u64 numbers)
{
    .reg .b32 %r<4>;
    .reg .b64 %rd<5>;
    ld.param.u64        %rd1, [numbers];
    cvta.to.global.u64  %rd2, %rd1;
    mov.u32             %r1, %tid.x;
    mul.wide.u32        %rd3, %r1, 4;
    add.s64             %rd4, %rd2, %rd3;
    ld.global.u32       %r2, [%rd4];
    mul.lo.u32          %r3, %r2, %r1;
    st.global.u32       [%rd4], %r3;
    ret;
}
"""
COUNT = 256


class Cuda:
    """The driver's library; a call that fails raises."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL("libcuda.so.1")

    def __getattr__(self, name: str) -> Any:
        def call(*arguments: Any) -> None:
            status = getattr(self._library, name)(*arguments)
            if status:
                raise RuntimeError(f"{name} answers {status}")

        return call


def compute() -> dict[str, Any]:
    """Fill memory of the first device with sevens, multiply each by its place, and bring them back."""
    cuda = Cuda()
    count, device, octets = ctypes.c_int(), ctypes.c_int(), (ctypes.c_ubyte * 16)()
    context, module, kernel = ctypes.c_void_p(), ctypes.c_void_p(), ctypes.c_void_p()
    memory, numbers = ctypes.c_uint64(), (ctypes.c_uint32 * COUNT)()
    cuda.cuInit(0)
    cuda.cuDeviceGetCount(ctypes.byref(count))
    cuda.cuDeviceGet(ctypes.byref(device), 0)
    cuda.cuDeviceGetUuid_v2(octets, device)
    cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
    cuda.cuCtxSetCurrent(context)
    cuda.cuMemAlloc_v2(ctypes.byref(memory), ctypes.c_size_t(4 * COUNT))
    cuda.cuMemsetD32_v2(memory, 7, ctypes.c_size_t(COUNT))
    cuda.cuModuleLoadData(ctypes.byref(module), KERNEL)
    cuda.cuModuleGetFunction(ctypes.byref(kernel), module, b"multiply")
    parameters = (ctypes.c_void_p * 1)(ctypes.addressof(memory))
    cuda.cuLaunchKernel(kernel, 1, 1, 1, COUNT, 1, 1, 0, None, parameters, None)
    cuda.cuCtxSynchronize()
    cuda.cuMemcpyDtoH_v2(numbers, memory, ctypes.c_size_t(4 * COUNT))
    cuda.cuMemFree_v2(memory)
    return {"devices": count.value, "uuid": str(uuid.UUID(bytes=bytes(octets))), "numbers": list(numbers)}
