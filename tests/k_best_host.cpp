// The kernel of kernels/src/k_best.cu on the host, as a function to be called through ctypes.

#include "auction_host.h"

#include "k_best.cu"

// One launch; the arguments after the shared memory are those of the kernel, in its order.
extern "C" void k_best_host(i64 blocks, i64 threads, i64 shared, const double* cost, const i64* best,
                            i64 b, i64 n, i64 k, i64* col_ind, double* total, double* child,
                            int* banned, int* last_free) {
  host::launch(static_cast<int>(blocks), static_cast<int>(threads), shared, [=] {
    k_best(cost, best, b, n, k, col_ind, total, child, banned, last_free);
  });
}
