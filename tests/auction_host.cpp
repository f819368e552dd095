// The kernels of kernels/src/auction.cu on the host: as a function to be called through ctypes,
// and, with HOST_MAIN, as a program for the thread sanitizer.

#include "auction_host.h"

#include "auction_entry.h"

// One launch; the arguments after the batch are those of the kernel, in its order.
extern "C" void auction_host(i64 kernel, i64 blocks, i64 threads, i64 shared, PARAMETERS, i64 first,
                             i64 second, i64 third, i64 fourth) {
  host::launch(static_cast<int>(blocks), static_cast<int>(threads), shared, [=] {
    call_kernel(kernel, cost, wide, sizes, old_dual, old_col, b, n, sign, limit, col_ind, row_dual,
                col_dual, objective, gap, status, stats, first, second, third, fourth);
  });
}

#ifdef HOST_MAIN
#include <cstdio>

// Reads from stdin: kernel, blocks, threads, shared bytes, bytes of a warp or team, blocks of a
// team, b and n as i64, then b n n doubles. Writes the columns, the duals of the columns, the
// status and the stats.
int main() {
  i64 head[8];
  if (std::fread(head, 8, 8, stdin) != 8) return 2;
  const i64 kernel = head[0], bytes = head[4], b = head[6], n = head[7];
  std::vector<double> cost(b * n * n), row_dual(b * n), col_dual(b * n), objective(b), gap(b);
  std::vector<i64> col_ind(b * n), status(b), stats(b * STATS);
  if (std::fread(cost.data(), 8, cost.size(), stdin) != cost.size()) return 2;
  std::vector<int4> scratch(kernel < 2 || kernel == 4 ? 1 : head[1] * bytes / 16 + 1);
  std::vector<u64> arrivals(head[1]);
  const i64 memory = reinterpret_cast<i64>(scratch.data());
  auction_host(kernel, head[1], head[2], head[3], cost.data(), 1, nullptr, nullptr, nullptr, b, n,
               1.0, 1000000, col_ind.data(), row_dual.data(), col_dual.data(), objective.data(),
               gap.data(), status.data(), stats.data(), kernel == 0 || kernel == 4 ? bytes : memory,
               kernel == 2 ? bytes / 4 : bytes, reinterpret_cast<i64>(arrivals.data()), head[5]);
  auto write = [](const auto& values) { std::fwrite(values.data(), 8, values.size(), stdout); };
  write(col_ind);
  write(col_dual);
  write(status);
  write(stats);
  return 0;
}
#endif
