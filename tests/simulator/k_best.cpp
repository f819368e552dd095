// The kernel of kernels/src/k_best.cu in the simulator, by the function that k_best_host.cpp has
// too. Compiled with -fsanitize=thread.

#include "device.h"

#include "k_best.cu"
#include "simulator.h"

using namespace simulator;

extern "C" void k_best_host(i64 blocks, i64 threads, i64 shared, const double* cost, const i64* best,
                            i64 b, i64 n, i64 k, i64* col_ind, double* total, double* child,
                            int* banned, int* last_free) {
  add_region(cost, b * n * n * 8, READ_ONLY, "cost");
  add_region(best, b * n * 8, READ_ONLY, "best");
  add_region(col_ind, b * k * n * 8, 0, "col_ind");
  add_region(total, b * k * 8, 0, "total");
  add_region(child, b * k * n * 8, 0, "child");
  add_region(banned, b * k * n * 4, 0, "banned");
  add_region(last_free, b * k * 4, 0, "last_free");
  launch(static_cast<int>(blocks), static_cast<int>(threads), shared, [=] {
    k_best(cost, best, b, n, k, col_ind, total, child, banned, last_free);
  });
}
