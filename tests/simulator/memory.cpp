// Who may touch which memory, and who did.

#include <link.h>

#include <algorithm>
#include <cstring>
#include <utility>

#include "fibers.h"
#include "simulator.h"

namespace simulator {
namespace {

// Accesses of one kind to four bytes: by nobody, by one thread, or the last of each thread.
struct History {
  static constexpr int NOBODY = -1;
  int who = NOBODY;  // a thread, or -2 - index into `several`
  Tick when = 0;
  Site site = 0;
};
struct Cell {
  History histories[4];  // by Kind
};
struct Region {
  uintptr_t begin, end;
  int flags;
  std::string name;
  std::vector<Cell> cells;
};

std::vector<Region> regions;
std::vector<Ticks> several;
std::vector<int> spare;  // of `several`
const char* const NAMES[] = {"read", "write", "atomic", "atomic read"};

// The library's own image: constants, and threadIdx and its like.
bool is_image(uintptr_t address) {
  static const auto image = [] {
    std::pair<uintptr_t, uintptr_t> found{0, 0};
    const auto look = [](dl_phdr_info* info, size_t, void* out) {
      uintptr_t begin = UINTPTR_MAX, end = 0;
      for (int k = 0; k < info->dlpi_phnum; ++k) {
        if (info->dlpi_phdr[k].p_type != PT_LOAD) continue;
        const uintptr_t start = info->dlpi_addr + info->dlpi_phdr[k].p_vaddr;
        begin = std::min(begin, start);
        end = std::max(end, start + info->dlpi_phdr[k].p_memsz);
      }
      const uintptr_t own = reinterpret_cast<uintptr_t>(&threadIdx);
      if (own < begin || own >= end) return 0;
      *static_cast<std::pair<uintptr_t, uintptr_t>*>(out) = {begin, end};
      return 1;
    };
    dl_iterate_phdr(look, &found);
    return found;
  }();
  return address >= image.first && address < image.second;
}

Region* region_of(uintptr_t address) {
  static size_t last = 0;
  const auto holds = [&](size_t r) {
    return r < regions.size() && address >= regions[r].begin && address < regions[r].end;
  };
  if (holds(last)) return &regions[last];
  for (size_t r = 0; r < regions.size(); ++r) {
    if (holds(r)) return &regions[last = r];
  }
  return nullptr;
}

// Whether all of `history` happened before now; else `who` is one of those that did not.
bool is_before(const History& history, const Fiber& fiber, int& who) {
  if (history.who == History::NOBODY || history.who == fiber.id) return true;
  if (history.who >= 0) {
    who = history.who;
    return fiber.tick_of(who) >= history.when;
  }
  Ticks& last = several[-2 - history.who];
  const Ticks& seen = *fiber.seen;
  const Tick own = std::exchange(last[fiber.id], 0);
  bool all_seen = true;  // without a way out the compiler makes vectors of this loop
  for (size_t t = 0; t < last.size(); ++t) all_seen &= last[t] <= seen[t];
  for (size_t t = 0; !all_seen && t < last.size(); ++t) {
    if (last[t] > seen[t]) who = static_cast<int>(t);
  }
  last[fiber.id] = own;
  return all_seen;
}

void forget(History& history) {
  if (history.who <= -2) spare.push_back(-2 - history.who);
  history = History();
}

// Add an access. One by a thread that has seen the only other one takes its place.
void note(History& history, const Fiber& fiber, Site site) {
  history.site = site;
  const int who = history.who;
  const bool replaces = who == History::NOBODY || who == fiber.id ||
                        (who >= 0 && fiber.tick_of(who) >= history.when);
  if (replaces) {
    history.who = fiber.id;
    history.when = fiber.now;
    return;
  }
  if (who >= 0) {
    if (spare.empty()) {
      spare.push_back(static_cast<int>(several.size()));
      several.emplace_back();
    }
    const int slot = spare.back();
    spare.pop_back();
    several[slot].assign(grid.fibers.size(), 0);
    several[slot][who] = history.when;
    history.who = -2 - slot;
  }
  several[-2 - history.who][fiber.id] = fiber.now;
}

void check_race(const History& history, Kind other, Kind kind, const Region& region, Site site) {
  int who = -1;
  if (is_before(history, *grid.current, who)) return;
  const Fiber &a = grid.fibers[who], &b = *grid.current;
  const char* between = a.block != b.block                   ? "blocks"
                        : a.thread / WARP != b.thread / WARP ? "warps"
                                                             : "lanes of a warp";
  report("race in " + region.name + ": " + NAMES[other] + " " + place(history.site) + " and " +
         NAMES[kind] + " " + place(site) + " of two " + between);
}

void access_cell(Cell& cell, Kind kind, const Region& region, Site site) {
  History* const by = cell.histories;
  const bool known = by[WRITE].who != History::NOBODY || by[ATOMIC].who != History::NOBODY ||
                     region.flags & INITIALISED;
  if (!known && kind != WRITE) report("uninitialised: " + region.name + " " + place(site));
  check_race(by[WRITE], WRITE, kind, region, site);
  if (kind == WRITE || kind == READ) check_race(by[ATOMIC], ATOMIC, kind, region, site);
  if (kind == WRITE || kind == ATOMIC) check_race(by[READ], READ, kind, region, site);
  if (kind == WRITE) check_race(by[ATOMIC_READ], ATOMIC_READ, kind, region, site);
  if (kind == WRITE) {  // whoever comes after it comes after what was before it
    for (History& history : cell.histories) forget(history);
  }
  note(by[kind], *grid.current, site);
}

// An access to memory that the launch was not given.
void access_outside(uintptr_t address, Kind kind, Site site) {
  for (const Fiber& fiber : grid.fibers) {
    const ucontext_t& start = fiber.start;
    const uintptr_t stack = reinterpret_cast<uintptr_t>(start.uc_stack.ss_sp);
    if (address < stack || address >= stack + start.uc_stack.ss_size) continue;
    if (&fiber != grid.current) {
      report(std::string("out of bounds: ") + NAMES[kind] + " of another thread's stack " +
             place(site));
    }
    return;
  }
  report(std::string("out of bounds: ") + NAMES[kind] + " outside of every region " + place(site));
  stop();  // before the access happens
}

// What the compiler calls before a plain access.
void plain(const void* address, size_t bytes, Kind kind, Site site) {
  if (!grid.current || (kind == READ && is_image(reinterpret_cast<uintptr_t>(address)))) return;
  let_others_run();
  access(address, bytes, kind, site);
}

}  // namespace

void add_region(const void* begin, size_t bytes, int flags, const std::string& name) {
  if (!begin || !bytes) return;
  Region region;
  region.begin = reinterpret_cast<uintptr_t>(begin);
  region.end = region.begin + bytes;
  region.flags = flags;
  region.name = name;
  if (!(flags & (READ_ONLY | ARGUMENTS))) region.cells.resize((bytes + 3) / 4);
  regions.push_back(std::move(region));
}

void start_memory() {
  several.clear();
  spare.clear();
}

void end_memory() { regions.clear(); }

void access(const void* where, size_t bytes, Kind kind, Site site) {
  const uintptr_t address = reinterpret_cast<uintptr_t>(where);
  Region* const region = region_of(address);
  if (!region) return access_outside(address, kind, site);
  if (region->flags & ARGUMENTS && kind == READ) return;
  if (address % std::min<size_t>(bytes, 16)) {
    report("misaligned: " + region->name + " " + place(site));
  }
  if (address + bytes > region->end) {
    report(std::string("out of bounds: ") + NAMES[kind] + " over the end of " + region->name + " " +
           place(site));
    stop();
  }
  if (region->flags & (READ_ONLY | ARGUMENTS)) {
    if (kind != READ && kind != ATOMIC_READ) report("write to " + region->name + " " + place(site));
    return;
  }
  if (bytes < 4) report("not simulated: an access of fewer than 4 bytes " + place(site));
  const auto own = reinterpret_cast<uintptr_t>(grid.blocks[grid.current->block].shared);
  if (region->flags & SHARED && region->begin != own) {
    report("out of bounds: shared memory of another block " + place(site));
  }
  if (kind == WRITE || kind == ATOMIC) note_progress();
  if (kind == ATOMIC_READ) note_waiting(site);
  const size_t first = (address - region->begin) / 4;
  for (size_t c = first; c <= (address + bytes - 1 - region->begin) / 4; ++c) {
    access_cell(region->cells[c], kind, *region, site);
  }
}

}  // namespace simulator

// The compiler's hooks.
using simulator::plain;
extern "C" {
#define HOOKS(bytes)                                                                          \
  void __tsan_read##bytes(void* a) { plain(a, bytes, simulator::READ, SITE); }                \
  void __tsan_write##bytes(void* a) { plain(a, bytes, simulator::WRITE, SITE); }              \
  void __tsan_unaligned_read##bytes(void* a) { plain(a, bytes, simulator::READ, SITE); }      \
  void __tsan_unaligned_write##bytes(void* a) { plain(a, bytes, simulator::WRITE, SITE); }
HOOKS(1)
HOOKS(2)
HOOKS(4)
HOOKS(8)
HOOKS(16)
void __tsan_read_range(void* a, unsigned long n) { plain(a, n, simulator::READ, SITE); }
void __tsan_write_range(void* a, unsigned long n) { plain(a, n, simulator::WRITE, SITE); }
void __tsan_init() {}
}
