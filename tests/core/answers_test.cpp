// What a visit is told: what a kernel answers is taken as it is, what none would is noticed.
#include "core/inject/answers.h"

#include <gtest/gtest.h>
#include <sys/prctl.h>

#include <algorithm>

#include "core/inject/attributes.h"

namespace migrate {
namespace {

constexpr Pid kPid{42};
constexpr Tid kTid{43};

parasite::Area honest() {
  parasite::Area area{};
  area.sigactions[1] = {0x401000, 0x14000004, 0x402000, 2};
  area.itimers[0] = {1, 500'000, INT64_MAX / 1'000'000'000, 999'999};
  area.dumpable = 2;
  area.thp_disabled = 3;  // with a flag
  area.brk = 0x5555'5577'0000;
  area.membarrier = -38;  // a kernel without it
  area.monotonic = {1000, 999'999'999};
  area.boottime = {2000, 6};
  area.itimers_read = {1001, 5};
  area.child_subreaper = 1;
  return area;
}

parasite::Timer honest_timer() {
  return {.id = 5,
          .overrun = INT32_MAX,
          .error = 0,
          .interval_sec = 1,
          .interval_nsec = 2,
          .value_sec = 3,
          .value_nsec = 4,
          .before = {1001, 0},
          .after = {1001, 7}};
}

TEST(AnswersTest, HonestOnesAreTaken) {
  const TaskHarvest h = answered_task(honest(), kPid);
  EXPECT_EQ(h.sigactions[1].handler, 0x401000u);
  EXPECT_EQ(h.itimers[0].it_interval.tv_usec, 500'000);
  EXPECT_EQ(h.itimers[0].it_value.tv_sec, INT64_MAX / 1'000'000'000);
  EXPECT_EQ(h.dumpable, 2);
  EXPECT_EQ(h.thp_disabled, 1);
  EXPECT_EQ(h.membarrier_registrations, 0);
  EXPECT_EQ(h.boottime.tv_nsec, 6);
  parasite::Thread thread{};
  thread.altstack = {0x7000, 1, 0, 8192};
  thread.tid_address = 0x1234;
  thread.pdeath_signal = 64;
  const ThreadHarvest t = answered_thread(thread, kTid, 0x2f);
  EXPECT_EQ(t.altstack.ss_size, 8192u);
  EXPECT_EQ(t.clear_child_tid, 0x1234u);
  EXPECT_EQ(t.securebits, 0x2fu);
  const TimerHarvest timer = answered_timer(honest(), honest_timer(), 5, kPid);
  EXPECT_EQ(timer.id, 5);
  EXPECT_EQ(timer.overrun, INT32_MAX);
  EXPECT_EQ(timer.value.it_value.tv_nsec, 4);
  EXPECT_EQ(answered_userfaultfd(7, kPid), 7);
}

TEST(AnswersTest, OnlyWhatAThreadMaySetOfSpeculationIsItsOwn) {
  constexpr uint32_t kStores = 5;
  size_t at = 0;
  while (thread_attributes()[at].id != kStores) ++at;
  const auto told = [&](uint64_t value) {
    parasite::Thread thread{};
    std::ranges::fill(thread.attributes, parasite::kUnanswered);
    thread.attributes[at] = value;
    const auto all = answered_thread(thread, kTid, 0).attributes;
    return all.empty() ? 0 : all.at(kStores);
  };
  EXPECT_EQ(told(PR_SPEC_PRCTL | PR_SPEC_DISABLE), PR_SPEC_PRCTL | PR_SPEC_DISABLE);
  EXPECT_EQ(told(PR_SPEC_PRCTL | PR_SPEC_ENABLE), 0u);
  for (const uint64_t machines : {uint64_t{PR_SPEC_NOT_AFFECTED}, uint64_t{PR_SPEC_ENABLE}, uint64_t{PR_SPEC_DISABLE}})
    EXPECT_EQ(told(machines), 0u);
  EXPECT_THROW(told(32), Corrupt);
}

TEST(AnswersTest, MemoryPoliciesAreTakenOrRefused) {
  constexpr uint64_t kBind = 2, kLocal = 4;
  size_t at = 0;
  while (thread_attributes()[at].id != kMemoryPolicy) ++at;
  parasite::Thread thread{};
  std::ranges::fill(thread.attributes, parasite::kUnanswered);
  thread.attributes[at] = kLocal;
  EXPECT_EQ(answered_thread(thread, kTid, 0).attributes.at(kMemoryPolicy), kLocal);
  thread.attributes[at] = kBind;
  EXPECT_THROW(answered_thread(thread, kTid, 0), Refusal);  // of too many nodes nothing is told
  thread.attributes[at + 1] = 6;
  EXPECT_EQ(answered_thread(thread, kTid, 0).attributes.at(kMemoryPolicyNodes), 6u);

  const AskedMapping mappings[] = {{{RemoteAddr(0x1000), RemoteAddr(0x2000)}, true},
                                   {{RemoteAddr(0x5000), RemoteAddr(0x8000)}, false}};
  parasite::Area area = honest();
  EXPECT_TRUE(answered_policies(area, mappings, kPid).empty());
  area.policy_count = 1;
  area.policies[0] = {1, kBind, 3};
  const auto policies = answered_policies(area, mappings, kPid);
  ASSERT_EQ(policies.size(), 1u);
  EXPECT_EQ(policies[0].range.start.get(), 0x5000u);
  EXPECT_EQ(policies[0].nodes, 3u);
  area.policies[0].mapping = 2;
  EXPECT_THROW(answered_policies(area, mappings, kPid), Corrupt);
  area.policies[0] = {0, kBind, 3};
  EXPECT_THROW(answered_policies(area, mappings, kPid), Refusal);  // of an object
  area.policies[0] = {1, 1 << 16, 3};
  EXPECT_THROW(answered_policies(area, mappings, kPid), Corrupt);
  area.policies[0].mode = parasite::kNodesUnknown;
  EXPECT_THROW(answered_policies(area, mappings, kPid), Refusal);
  area.policy_count = parasite::kMostPolicies + 1;
  EXPECT_THROW(answered_policies(area, mappings, kPid), Refusal);
}

TEST(AnswersTest, FailuresOfCallsAreToldByTheirNumber) {
  parasite::Area area = honest();
  area.first_error = -EFAULT;
  try {
    answered_task(area, kPid);
    ADD_FAILURE() << "not noticed";
  } catch (const Error& e) {
    EXPECT_EQ(e.code(), EFAULT);
    EXPECT_NE(std::string(e.what()).find("task 42"), std::string::npos) << e.what();
  }
  EXPECT_THROW(answered_userfaultfd(-EMFILE, kPid), Error);
}

TEST(AnswersTest, ImpossibleOnesAreNoticed) {
  using Change = void (*)(parasite::Area&);
  const Change changes[] = {
      [](parasite::Area& a) { a.first_error = INT64_MIN; },
      [](parasite::Area& a) { a.first_error = -4096; },
      [](parasite::Area& a) { a.itimers[2].value_sec = -1; },
      [](parasite::Area& a) { a.itimers[1].interval_sec = INT64_MAX; },
      [](parasite::Area& a) { a.itimers[0].value_usec = 1'000'000; },
      [](parasite::Area& a) { a.dumpable = 3; },
      [](parasite::Area& a) { a.dumpable = int64_t{1} << 32; },
      [](parasite::Area& a) { a.child_subreaper = 2; },
      [](parasite::Area& a) { a.thp_disabled = INT64_MIN; },
      [](parasite::Area& a) { a.brk = -12; },
      [](parasite::Area& a) { a.brk = int64_t{1} << 47; },
      [](parasite::Area& a) { a.membarrier = int64_t{1} << 32; },
      [](parasite::Area& a) { a.mdwe = 4; },
      [](parasite::Area& a) { a.memory_merge = 2; },
      [](parasite::Area& a) { a.lock_future = 8; },
      [](parasite::Area& a) { a.monotonic.sec = -1; },
      [](parasite::Area& a) { a.boottime.sec = INT64_MAX; },
      [](parasite::Area& a) { a.boottime.nsec = 1'000'000'000; },
      [](parasite::Area& a) {
        a.itimers_read = {1000, 0};
      },
      [](parasite::Area& a) { a.itimers_read.sec = 1 << 20; },
  };
  for (const Change& change : changes) {
    parasite::Area area = honest();
    change(area);
    EXPECT_THROW(answered_task(area, kPid), Corrupt) << &change - changes;
  }
  parasite::Thread thread{};
  thread.pdeath_signal = 65;
  EXPECT_THROW(answered_thread(thread, kTid, 0), Corrupt);
  thread = {};
  thread.tid_address_result = INT64_MIN;
  EXPECT_THROW(answered_thread(thread, kTid, 0), Corrupt);
  EXPECT_THROW(answered_thread(parasite::Thread{}, kTid, int64_t{1} << 32), Corrupt);
  using TimerChange = void (*)(parasite::Timer&);
  for (const TimerChange change :
       {TimerChange{[](parasite::Timer& t) { t.value_nsec = 1'000'000'000; }},
        TimerChange{[](parasite::Timer& t) { t.error = INT64_MIN; }},
        TimerChange{[](parasite::Timer& t) { t.interval_sec = -1; }}, TimerChange{[](parasite::Timer& t) {
          t.after = {1000, 0};
        }},
        TimerChange{[](parasite::Timer& t) {
          t.before = {1001, 8};
        }}}) {
    parasite::Timer timer = honest_timer();
    change(timer);
    EXPECT_THROW(answered_timer(honest(), timer, 0, kPid), Corrupt);
  }
  EXPECT_THROW(answered_userfaultfd(INT64_MIN, kPid), Corrupt);
  EXPECT_THROW(answered_userfaultfd(int64_t{1} << 32, kPid), Corrupt);
}

}  // namespace
}  // namespace migrate
