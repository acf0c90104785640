// What is recorded of lazy memory, and taken over from the middle of anything.
#include "lazypages/lazy_record.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <algorithm>
#include <deque>
#include <random>

#include "core/base/fd.h"

namespace migrate::lazy_record_testing {
namespace {

constexpr MemoryId kMemory{MemoryId::Kind::task, 7};
constexpr uint64_t kBase = 0x100000000;

RemoteRange pages(uint64_t first, uint64_t count) {
  return {RemoteAddr(kBase + first * kPageSize), RemoteAddr(kBase + (first + count) * kPageSize)};
}

/// A record in memory that is shared, as far as its users know.
struct Shared {
  Shared() { LazyRecord::make(root); }
  ~Shared() {
    ::close(root.pages);
    ::close(root.logs);
  }
  std::shared_ptr<LazyRecord> open() { return std::make_shared<LazyRecord>(root); }
  RecordRoot root;
};

/// A userfaultfd as far as read(2) goes.
struct Messages {
  Messages() {
    int ends[2];
    EXPECT_EQ(::pipe2(ends, O_NONBLOCK), 0);
    out = Fd(ends[0]);
    in = Fd(ends[1]);
  }
  void tell(uint64_t number) const {
    uffd_msg message{};
    message.event = UFFD_EVENT_REMOVE;
    message.arg.remove.start = kBase;
    message.arg.remove.end = kBase + number * kPageSize;
    EXPECT_EQ(::write(in.get(), &message, sizeof message), static_cast<ssize_t>(sizeof message));
  }
  Fd out, in;
};

MissingPages all_missing(uint64_t count) {
  const std::vector<RemoteRange> ranges{pages(0, count)};
  const std::vector<PageRun> missing{{kBase, count}};
  return {ranges, missing};
}

TEST(LazyRecord, EventsThatWereNotAppliedAreToldAgainAlsoToTheNext) {
  Shared shared;
  const Messages messages;
  auto record = shared.open();
  MissingPages missing = all_missing(1000);
  auto space = std::make_unique<SpaceRecord>(record, kMemory, messages.out.get(), -1, missing);
  record->adopted({});
  uint64_t told = 0, got = 0;
  std::mt19937_64 random(1);
  for (int round = 0; round < 400; ++round) {
    for (uint64_t i = random() % 300; i > 0; --i) messages.tell(++told);
    while (got < told) {
      auto waiting = space->read(messages.out.get());
      ASSERT_FALSE(waiting.empty());
      for (size_t i = random() % (waiting.size() + 1); i > 0; --i) {
        ASSERT_EQ(waiting.front().arg.remove.end, kBase + (got + 1) * kPageSize);
        waiting = waiting.subspan(1);
        // The change is what counts: a writer that is killed before it has counted the event.
        const bool counts = random() % 4 != 0 || i > 1;
        const PageChange change{PageChange::What::settled, kBase, kBase + kPageSize * (1 + random() % 1000)};
        space->change(change, true, missing);
        missing.apply(change);
        ++got;
        if (counts) {
          space->applied();
          continue;
        }
        space.reset();
        record = shared.open();
        MissingPages recorded;
        space = std::make_unique<SpaceRecord>(record, *record->used().at(0), recorded);
        EXPECT_EQ(recorded.runs(), missing.runs());
        break;
      }
    }
  }
  EXPECT_GT(got, 10000u);
}

// All changes of MissingPages, so many that the log begins anew again and again.
TEST(LazyRecord, WhatIsRecordedIsWhatIsMissing) {
  Shared shared;
  auto record = shared.open();
  MissingPages missing = all_missing(4000);
  auto space = std::make_unique<SpaceRecord>(record, kMemory, 99, 98, missing);
  record->adopted({{kMemory, {{kBase, kBase + kPageSize}, {kBase + 4 * kPageSize, kBase + 5 * kPageSize}}}});
  std::mt19937_64 random(2);
  for (int i = 0; i < 30000; ++i) {
    const uint64_t start = kBase + random() % 4200 * kPageSize, end = start + (1 + random() % 3) * kPageSize;
    PageChange change{static_cast<PageChange::What>(random() % PageChange::kWhats), start, end,
                      kBase + random() % 4200 * kPageSize};
    if (change.what == PageChange::What::moved && change.to < end && start < change.to + (end - start)) continue;
    if (random() % 4 != 0) change.what = PageChange::What::moved, change.to = start + (1 << 30);
    space->change(change, false, missing);
    missing.apply(change);
    if (i % 1000 != 999) continue;
    space.reset();
    record = shared.open();
    ASSERT_EQ(record->used().size(), 1u);
    const SpacePage& page = *record->used()[0];
    EXPECT_EQ(std::pair(page.userfaultfd, page.pagemap), std::pair(99, 98));
    MissingPages recorded;
    space = std::make_unique<SpaceRecord>(record, *record->used()[0], recorded);
    EXPECT_EQ(recorded.runs(), missing.runs());
    EXPECT_EQ(recorded.pages(), missing.pages());
    EXPECT_EQ(recorded.unsettled(), missing.unsettled());
    std::vector<uint64_t> words(recorded.words()), expected(missing.words());
    recorded.save(words);
    missing.save(expected);
    EXPECT_EQ(words, expected);
  }
  EXPECT_EQ(record->announced().at(kMemory).size(), 2u);
  EXPECT_EQ(record->announced().at(kMemory).rbegin()->second, kBase + 5 * kPageSize);
}

// A program that discards in a loop.
TEST(LazyRecord, TheLogDoesNotGrowWithoutEnd) {
  Shared shared;
  const auto record = shared.open();
  const MissingPages missing = all_missing(1000);
  SpaceRecord space(record, kMemory, 99, -1, missing);
  for (int i = 0; i < 500000; ++i) space.change({PageChange::What::settled, kBase - kPageSize, kBase}, false, missing);
  EXPECT_LT(::lseek(shared.root.logs, 0, SEEK_END), 1 << 20);
}

TEST(LazyRecord, NothingHoldsBeforeItIsAdoptedAndNothingThatHasEnded) {
  Shared shared;
  const MissingPages missing = all_missing(10);
  {
    const auto record = shared.open();
    const SpaceRecord space(record, kMemory, 99, -1, missing);
    EXPECT_FALSE(record->outlasts());
    auto next = shared.open();  // the writer was killed here
    EXPECT_TRUE(next->used().empty());
    EXPECT_EQ(next->descriptors(), (std::vector<int>{shared.root.pages, shared.root.logs}));
  }
  auto record = shared.open();
  auto first = std::make_unique<SpaceRecord>(record, kMemory, 99, -1, missing);
  auto second = std::make_unique<SpaceRecord>(record, kMemory, 98, 97, missing);
  record->adopted({});
  EXPECT_TRUE(record->outlasts());
  first->end();
  record = shared.open();
  ASSERT_EQ(record->used().size(), 1u);
  EXPECT_EQ(record->descriptors(), (std::vector<int>{shared.root.pages, shared.root.logs, 98, 97}));
}

TEST(LazyRecord, AForkIsTakenOverOnceWhereverItsParentStopped) {
  for (const int stopped : {0, 1, 2}) {
    SCOPED_TRACE(stopped);
    Shared shared;
    const Messages messages;
    auto record = shared.open();
    const MissingPages missing = all_missing(10);
    auto parent = std::make_unique<SpaceRecord>(record, kMemory, messages.out.get(), -1, missing);
    record->adopted({});
    uffd_msg message{};
    message.event = UFFD_EVENT_FORK;
    message.arg.fork.ufd = 96;
    ASSERT_EQ(::write(messages.in.get(), &message, sizeof message), static_cast<ssize_t>(sizeof message));
    ASSERT_EQ(parent->read(messages.out.get()).size(), 1u);
    std::unique_ptr<SpaceRecord> child;
    if (stopped > 0) child = std::make_unique<SpaceRecord>(record, kMemory, 96, -1, missing, parent.get());
    if (stopped > 1) parent->applied();

    const auto next = shared.open();
    EXPECT_EQ(next->used().size(), stopped == 0 ? 1u : 2u);
    size_t outstanding = 0;
    for (const SpacePage* page : next->used()) outstanding += page->outstanding().size();
    EXPECT_EQ(outstanding, stopped == 0 ? 1u : 0u);
    const auto descriptors = next->descriptors();
    EXPECT_EQ(std::ranges::count(descriptors, 96), 1);
  }
}

}  // namespace
}  // namespace migrate::lazy_record_testing
