// How both stand-ins for CUDA call a kernel of kernels/src/auction.cu by its number; included after
// the stand-in.

#pragma once
#include "auction.cu"

// What one thread of a launch runs. `kernel` is the index in KERNELS of auction.py, and the last
// four are what the launcher adds to the arguments that all kernels have.
inline void call_kernel(i64 kernel, PARAMETERS, i64 first, i64 second, i64 third, i64 fourth) {
  auto call = [&](auto* entry, auto... rest) {
    entry(cost, wide, sizes, old_dual, old_col, b, n, sign, limit, col_ind, row_dual, col_dual,
          objective, gap, status, stats, rest...);
  };
  if (kernel == 0) call(auction_warp, first);
  if (kernel == 4) call(auction_warp_64, first);
  if (kernel == 1) call(auction_shared);
  if (kernel == 2) call(auction_block, reinterpret_cast<int*>(first), second);
  if (kernel == 3) {
    call(auction_grid, reinterpret_cast<unsigned char*>(first), second,
         reinterpret_cast<u64*>(third), fourth);
  }
}
