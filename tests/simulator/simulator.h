// How a host program runs a kernel in the simulator; README of the parts: fibers.h.

#pragma once
#include <cstddef>
#include <string>

namespace simulator {

enum RegionFlags {
  INITIALISED = 1,  // by the host; else reading before writing is reported
  READ_ONLY = 2,    // initialised, and never written
  SHARED = 4,       // of one block
  ARGUMENTS = 8,    // of the kernel: any read is fine
};

// Memory that the kernels of the next launch may touch. Null and empty regions are ignored.
void add_region(const void* begin, size_t bytes, int flags, const std::string& name);

// Run all threads until each has ended, or none can go on; then forget the regions.
void run_grid(int blocks, int threads, size_t shared_bytes, void (*kernel)(const void*),
              const void* arguments);

// The same for a function object that every thread calls.
template <class Kernel>
void launch(int blocks, int threads, size_t shared_bytes, const Kernel& kernel) {
  add_region(&kernel, sizeof kernel, ARGUMENTS, "arguments");
  const auto call = [](const void* arguments) { (*static_cast<const Kernel*>(arguments))(); };
  run_grid(blocks, threads, shared_bytes, call, &kernel);
}

}  // namespace simulator
