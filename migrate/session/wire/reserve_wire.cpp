#include "migrate/session/wire/reserve_wire.h"

#include <algorithm>

#include "core/base/error.h"

namespace migrate {
namespace {

/// 256 MiB: half a second where the machine must get its memory first.
constexpr uint64_t kPartPages = 64 << 10;
constexpr int kPartReserves = 20'000;
constexpr uint64_t kHugePages = (2 << 20) / kPageSize;

void require_good(bool good, const char* why) {
  if (!good) throw Corrupt("the pages to be made ready, from the peer", why);
}

}  // namespace

std::vector<wire::Reserve> to_wire(std::span<const PageReserve> pages) {
  std::vector<wire::Reserve> parts(1);
  uint64_t room = kPartPages;
  for (PageReserve left : pages) {
    while (left.pages > 0) {
      uint64_t n = std::min(left.pages, room);
      if (left.huge_pages) n -= n % kHugePages;
      if (n == 0 || parts.back().runs_size() == kPartReserves) {
        parts.emplace_back();
        room = kPartPages;
        continue;
      }
      wire::Reserve::Run* run = parts.back().add_runs();
      run->set_kind(static_cast<uint32_t>(left.memory.kind));
      run->set_id(left.memory.id);
      run->set_address(left.address);
      run->set_pages(n);
      if (left.huge_pages) run->set_huge_pages(true);
      left.address += n * kPageSize;
      left.pages -= n;
      room -= n;
    }
  }
  return parts;
}

std::vector<PageReserve> from_wire(const wire::Reserve& reserve) {
  require_good(reserve.runs_size() <= kPartReserves, "too many runs");
  std::vector<PageReserve> out;
  out.reserve(static_cast<size_t>(reserve.runs_size()));
  uint64_t room = kPartPages;
  for (const wire::Reserve::Run& run : reserve.runs()) {
    const uint64_t unit = run.huge_pages() ? kHugePages : 1;
    require_good(run.kind() == 1 || run.kind() == 2, "a memory of an unknown kind");
    require_good(run.pages() <= room, "too many pages");
    room -= run.pages();
    require_good(run.pages() % unit == 0 && run.address() % (unit * kPageSize) == 0 && run.address() <= kUserEnd &&
                     run.pages() <= (kUserEnd - run.address()) / kPageSize,
                 "pages out of range");
    out.push_back({{static_cast<MemoryId::Kind>(run.kind()), run.id()}, run.address(), run.pages(), run.huge_pages()});
  }
  return out;
}

}  // namespace migrate
