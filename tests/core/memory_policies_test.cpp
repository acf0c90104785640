// Memory policies of images: only for nodes that are here, and as a dump writes them.
#include "core/restore/memory_policies.h"

#include <gtest/gtest.h>

#include "core/inject/attributes.h"
#include "core/inject/parasite_protocol.h"

namespace migrate {
namespace {

constexpr uint32_t kBind = 2, kStatic = 1 << 15, kRelative = 1 << 14;

TaskImage task_with(uint32_t mode, uint64_t nodes) {
  TaskImage task;
  task.pid = 7;
  task.tids = {7};
  task.vmas.push_back({.start = 0x10000, .end = 0x20000});
  ext::MappingPolicy& p = *task.extra[7].mutable_task()->add_policies();
  p.set_start(0x11000);
  p.set_end(0x20000);
  p.set_mode(mode);
  p.set_nodes(nodes);
  return task;
}

TEST(MemoryPoliciesTest, ListsOfNodes) {
  EXPECT_EQ(nodes_of_list("0\n"), 1U);
  EXPECT_EQ(nodes_of_list("0-2,5"), 0x27U);
  EXPECT_EQ(nodes_of_list("62-1000000000000,70"), uint64_t{3} << 62);
  EXPECT_EQ(nodes_of_list(""), 0U);
  EXPECT_THROW(nodes_of_list("0-"), Corrupt);
  EXPECT_THROW(nodes_of_list("x"), Corrupt);
  EXPECT_NE(usable_nodes(), 0U);
}

TEST(MemoryPoliciesTest, NodesThatAreNotHereAreRefused) {
  EXPECT_NO_THROW(check_policies(task_with(kBind, 1), 1));
  EXPECT_THROW(check_policies(task_with(kBind, 3), 1), Refusal);
  EXPECT_NO_THROW(check_policies(task_with(kBind | kStatic, 3), 1));
  EXPECT_THROW(check_policies(task_with(kBind | kStatic, 2), 1), Refusal);
  EXPECT_NO_THROW(check_policies(task_with(kBind | kRelative, 2), 1));
  TaskImage task = task_with(kBind, 1);
  const auto say = [&](uint32_t id, uint64_t value) {
    ext::Attribute& a = *task.extra[7].add_attributes();
    a.set_id(id);
    a.set_value(value);
  };
  say(kMemoryPolicy, kBind);
  say(kMemoryPolicyNodes, 4);
  EXPECT_THROW(check_policies(task, 1), Refusal);
  EXPECT_NO_THROW(check_policies(task, 5));
}

TEST(MemoryPoliciesTest, ImpossibleOnesAreNoticed) {
  EXPECT_THROW(check_policies(task_with(1 << 16, 1), 1), Corrupt);
  for (const auto& [start, end] :
       {std::pair(0x11001, 0x20000), {0x9000, 0x20000}, {0x11000, 0x21000}, {0x12000, 0x12000}}) {
    TaskImage task = task_with(kBind, 1);
    ext::MappingPolicy& p = *task.extra[7].mutable_task()->mutable_policies(0);
    p.set_start(static_cast<uint64_t>(start));
    p.set_end(static_cast<uint64_t>(end));
    EXPECT_THROW(check_policies(task, 1), Corrupt) << std::hex << start;
  }
  TaskImage task = task_with(kBind, 1);
  const ext::MappingPolicy one = task.extra[7].task().policies(0);
  for (uint32_t i = 0; i < parasite::kMostPolicies; ++i) *task.extra[7].mutable_task()->add_policies() = one;
  EXPECT_THROW(check_policies(task, 1), Corrupt);
}

}  // namespace
}  // namespace migrate
