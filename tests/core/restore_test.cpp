#include <gtest/gtest.h>
#include <sys/mman.h>

#include "core/restore/address_space.h"
#include "core/restore/tree_order.h"

namespace migrate {
namespace {

TaskNode node(pid_t pid, pid_t ppid, pid_t pgid, pid_t sid, int parent) {
  TaskNode n;
  n.pid = pid;
  n.ppid = ppid;
  n.pgid = pgid;
  n.sid = sid;
  n.parent = parent;
  n.threads = {pid};
  return n;
}

std::vector<TaskNode> tree(std::vector<TaskNode> tasks) {
  for (size_t i = 1; i < tasks.size(); ++i)
    tasks[static_cast<size_t>(tasks[i].parent)].children.push_back(static_cast<int>(i));
  return tasks;
}

TEST(RestoreTreeOrder, ChildOfTheOldSessionIsForkedBeforeSetsid) {
  auto tasks = tree({node(10, 1, 10, 10, -1), node(11, 10, 11, 11, 0), node(12, 11, 10, 10, 1)});
  plan_tree(tasks, false);
  EXPECT_TRUE(tasks[0].new_session);
  EXPECT_TRUE(tasks[1].new_session);
  EXPECT_FALSE(tasks[1].before_setsid);
  EXPECT_TRUE(tasks[2].before_setsid);
  EXPECT_EQ(tasks[2].join_group, 10);
}

TEST(RestoreTreeOrder, DeadSessionLeaderIsPlayedByAHelper) {
  auto tasks = tree({node(10, 1, 10, 10, -1), node(12, 10, 11, 11, 0), node(13, 10, 13, 11, 0)});
  plan_tree(tasks, false);
  EXPECT_EQ(tasks[1].session_helper, 11);
  EXPECT_EQ(tasks[2].session_helper, 11);
  EXPECT_EQ(tasks[1].join_group, 11);
  EXPECT_EQ(tasks[1].group_helper, 0);
  EXPECT_TRUE(tasks[2].new_group);
}

TEST(RestoreTreeOrder, ShellJobInheritsWhatIsOutside) {
  auto tasks = tree({node(10, 1, 9, 5, -1), node(11, 10, 11, 5, 0)});
  plan_tree(tasks, true);
  EXPECT_EQ(tasks[0].session_helper, 0);
  EXPECT_EQ(tasks[0].join_group, 0);
  EXPECT_TRUE(tasks[1].new_group);
  tasks = tree({node(10, 1, 9, 5, -1)});
  plan_tree(tasks, false);
  EXPECT_EQ(tasks[0].session_helper, 5);
  EXPECT_EQ(tasks[0].group_helper, 9);
}

TEST(RestoreTreeOrder, SessionOfASiblingsDescendantIsRefused) {
  auto tasks = tree({node(10, 1, 10, 10, -1), node(11, 10, 11, 11, 0), node(12, 10, 12, 11, 0)});
  EXPECT_THROW(plan_tree(tasks, false), Refusal);
}

TEST(RestoreStaging, RangesAreFreeAndEqualModuloAHugePage) {
  std::vector<ImageVma> vmas(3);
  for (size_t i = 0; i < vmas.size(); ++i) {
    vmas[i].start = 0x40000000 + i * 0x301000;
    vmas[i].end = vmas[i].start + 0x201000;
    vmas[i].prot = PROT_READ | PROT_WRITE;
    vmas[i].flags = MAP_PRIVATE | MAP_ANONYMOUS;
  }
  std::vector<AddressRange> busy;
  for (const ImageVma& v : vmas) busy.push_back({v.start, v.end});
  AddressPicker picker(busy);
  const auto staged = plan_staging(vmas, std::vector<AddressRange>{{vmas[0].start, vmas[0].start + kPageSize},
                                                                   {vmas[2].start, vmas[2].end}}, picker);
  ASSERT_EQ(staged.size(), 2u);
  for (const StagedRange& s : staged) {
    EXPECT_EQ(s.staging % kHugePageSize, s.final_start % kHugePageSize);
    for (const AddressRange& b : busy) EXPECT_TRUE(s.staging + s.bytes <= b.start || s.staging >= b.end);
  }
}

TEST(RestoreImages, HostileMappingsAreThrownOut) {
  img::mm_entry mm;
  auto* v = mm.add_vmas();
  v->set_start(0x2000);
  v->set_end(0x1000);
  v->set_pgoff(0);
  v->set_shmid(0);
  v->set_prot(3);
  v->set_flags(MAP_PRIVATE | MAP_ANONYMOUS);
  v->set_status(1);
  v->set_fd(-1);
  EXPECT_THROW(read_vmas(mm, 42), Corrupt);
  v->set_end(0x3000);
  EXPECT_EQ(read_vmas(mm, 42).size(), 1u);
  *mm.add_vmas() = *v;
  EXPECT_THROW(read_vmas(mm, 42), Corrupt);
  mm.mutable_vmas(1)->set_start(kUserEnd);
  mm.mutable_vmas(1)->set_end(kUserEnd + 0x1000);
  EXPECT_THROW(read_vmas(mm, 42), Corrupt);
}

}  // namespace
}  // namespace migrate
