// For tests that know by themselves which pages are missing and registered.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>

#include "lazypages/missing_pages.h"

namespace migrate::page_model {

inline constexpr uint64_t kBase = 0x100000000;

inline RemoteRange pages(uint64_t first, uint64_t count) {
  return {RemoteAddr(kBase + first * kPageSize), RemoteAddr(kBase + (first + count) * kPageSize)};
}

/// No event is outstanding, and the kernel says what is registered.
inline void settle_moves(MissingPages& m, const std::function<bool(uint64_t address)>& registered) {
  while (const auto doubt = m.doubt()) {
    const RemoteRange page{doubt->range.start, doubt->range.start + kPageSize};
    registered(page.start.get()) ? m.registered(page) : m.gone(page);
  }
  m.settle_moves();
  EXPECT_FALSE(m.unsettled());
}

}  // namespace migrate::page_model
