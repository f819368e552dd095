// The kernels of kernels/src/auction.cu in the simulator, by the function that auction_host.cpp
// has too. Compiled with -fsanitize=thread.

#include "device.h"

#include "../auction_entry.h"
#include "simulator.h"

using namespace simulator;

extern "C" void auction_host(i64 kernel, i64 blocks, i64 threads, i64 shared, PARAMETERS, i64 first,
                             i64 second, i64 third, i64 fourth) {
  add_region(cost, b * n * n * (wide ? 8 : 4), READ_ONLY, "cost");
  add_region(sizes, b * 8, READ_ONLY, "sizes");
  add_region(old_dual, b * n * 8, READ_ONLY, "old_dual");
  add_region(old_col, b * n * 8, READ_ONLY, "old_col");
  add_region(col_ind, b * n * 8, 0, "col_ind");
  add_region(row_dual, b * n * 8, 0, "row_dual");
  add_region(col_dual, b * n * 8, 0, "col_dual");
  add_region(objective, b * 8, 0, "objective");
  add_region(gap, b * 8, 0, "gap");
  add_region(status, b * 8, 0, "status");
  add_region(stats, b * STATS * 8, 0, "stats");
  if (kernel == 2) add_region(reinterpret_cast<void*>(first), blocks * second * 4, 0, "scratch");
  if (kernel == 3) {
    const i64 teams = blocks / fourth;
    add_region(reinterpret_cast<void*>(first), teams * second, 0, "scratch");
    add_region(reinterpret_cast<void*>(third), teams * 8, INITIALISED, "arrivals");
  }
  launch(static_cast<int>(blocks), static_cast<int>(threads), shared, [=] {
    call_kernel(kernel, cost, wide, sizes, old_dual, old_col, b, n, sign, limit, col_ind, row_dual,
                col_dual, objective, gap, status, stats, first, second, third, fourth);
  });
}
