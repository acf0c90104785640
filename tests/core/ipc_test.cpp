// System V objects: what /proc tells of them, whose they are, and what images say.
#include <gtest/gtest.h>
#include <sys/shm.h>

#include "core/base/error.h"
#include "core/image/magic.h"
#include "core/ipc/ipc_images.h"
#include "core/ipc/whose_objects.h"
#include "images/core.pb.h"
#include "images/inventory.pb.h"
#include "images/pstree.pb.h"

namespace migrate {
namespace {

constexpr pid_t kTree = 100, kOther = 200, kDead = 300;

IpcObject object(IpcKind kind, int id) {
  IpcObject o;
  o.kind = kind;
  o.id = id;
  o.uid = o.cuid = 1000;
  o.changed = 5000;
  o.size = 1;
  return o;
}

IpcUsers tree() {
  IpcUsers users;
  users.tree = {{kTree, 4000}};
  users.users = {1000};
  users.since = 4000;
  users.exact = true;
  return users;
}

std::vector<int> picked(const std::vector<IpcObject>& all, const IpcUsers& users) {
  std::vector<int> ids;
  for (const IpcObject& o : pick_objects(all, users, [](pid_t pid, int64_t) { return pid == kOther; }))
    ids.push_back(o.id);
  return ids;
}

using Ids = std::vector<int>;

TEST(SysvIpc, TheListsOfTheKernelAreRead) {
  const auto shm =
      parse_sysvipc(IpcKind::segment,
                    "key shmid ...\n 10957457         25   600  56 77 78 7 101 104 102 105 11 12 13 4096 0\n"
                    "-1 3 1600 5000 1 2 0 0 0 0 0 0 0 9 0 0\n");
  ASSERT_EQ(shm.size(), 2U);
  EXPECT_EQ(shm[0].key, 0xa73291U);
  EXPECT_EQ(shm[0].mode, 0600U);
  EXPECT_EQ(shm[0].size, 56U);
  EXPECT_EQ(shm[0].creator, 77);
  EXPECT_EQ(shm[0].attached, 7U);
  EXPECT_EQ(shm[0].cgid, 105U);
  EXPECT_EQ(shm[0].changed, 13);
  EXPECT_EQ(shm[1].key, UINT32_MAX);
  EXPECT_NE(shm[1].mode & SHM_DEST, 0U);
  const auto msg = parse_sysvipc(IpcKind::queue, "key msqid ...\n 0 5 620 8 2 70 71 1 2 3 4 20 21 22\n");
  ASSERT_EQ(msg.size(), 1U);
  EXPECT_EQ(msg[0].size, 2U);
  EXPECT_EQ(msg[0].last_b, 71);
  EXPECT_EQ(msg[0].used_a, 20);
  EXPECT_THROW(parse_sysvipc(IpcKind::semaphores, "key\n 1 2 x\n"), Corrupt);
}

TEST(SysvIpc, AttachedSegmentsAreTheTreesIfNobodyElseHasThem) {
  IpcObject o = object(IpcKind::segment, 7);
  o.attached = 2;
  o.creator = kDead;
  IpcUsers users = tree();
  users.mappings = {{7, 2}};
  EXPECT_EQ(picked({o}, users), Ids{7});
  o.attached = 3;
  EXPECT_THROW(picked({o}, users), Refusal);
  users.exact = false;  // it runs: counts say nothing
  EXPECT_EQ(picked({o}, users), Ids{7});
  o.creator = kOther;
  EXPECT_THROW(picked({o}, users), Refusal);
}

TEST(SysvIpc, OthersKeepWhatTheyUse) {
  IpcObject segment = object(IpcKind::segment, 1), set = object(IpcKind::semaphores, 2),
            queue = object(IpcKind::queue, 3);
  segment.attached = 1;
  segment.creator = kOther;
  queue.last_b = kOther;
  IpcUsers users = tree();
  users.users_of_sets = {{2, {kOther, kDead}}};
  EXPECT_EQ(picked({segment, set, queue}, users), Ids{});
}

TEST(SysvIpc, SetsAndQueuesAreThoseOfWhoUsedThemLast) {
  IpcObject set = object(IpcKind::semaphores, 2), queue = object(IpcKind::queue, 3);
  IpcUsers users = tree();
  users.users_of_sets = {{2, {kDead, kTree}}};
  queue.last_a = kTree;
  queue.used_a = 5000;
  EXPECT_EQ(picked({set, queue}, users), (Ids{2, 3}));
  queue.last_b = kOther;
  EXPECT_THROW(picked({set, queue}, users), Refusal);
}

TEST(SysvIpc, ANumberThatSomebodyElseHadBeforeIsNotTheTrees) {
  IpcObject queue = object(IpcKind::queue, 3);
  queue.changed = 1000;
  queue.last_a = kTree;
  queue.used_a = 3999;
  EXPECT_EQ(picked({queue}, tree()), Ids{});
}

TEST(SysvIpc, WhatBelongsToAnotherUserIsRefusedIfTheTreeUsesIt) {
  IpcObject queue = object(IpcKind::queue, 3);
  queue.last_a = kTree;
  queue.used_a = 5000;
  queue.uid = queue.cuid = 7;
  IpcUsers users = tree();
  EXPECT_THROW(picked({queue}, users), Refusal);
  users.users.insert(0);
  EXPECT_EQ(picked({queue}, users), Ids{3});
  queue.cuid = 1000;
  EXPECT_EQ(picked({queue}, tree()), Ids{3});
}

TEST(SysvIpc, WhoWaitsOrHasToUndoUsesIt) {
  const IpcObject set = object(IpcKind::semaphores, 2), queue = object(IpcKind::queue, 3);
  IpcUsers users = tree();
  users.waits = {{IpcKind::queue, 3}};
  users.undos = {{kTree, 2, {1}}};
  EXPECT_EQ(picked({set, queue}, users), (Ids{2, 3}));
  users.others_wait = {{IpcKind::queue, 3}};
  EXPECT_THROW(picked({set, queue}, users), Refusal);
}

TEST(SysvIpc, WhatMayBeTheTreesIsRefusedAndOldOnesStay) {
  IpcObject queue = object(IpcKind::queue, 3);
  EXPECT_THROW(picked({queue}, tree()), Refusal);
  queue.changed = 3999;  // before the tree
  EXPECT_EQ(picked({queue}, tree()), Ids{});
  queue.used_a = 5000;  // by somebody who is dead
  EXPECT_THROW(picked({queue}, tree()), Refusal);
  queue.used_a = 0;
  queue.changed = 5000;
  queue.uid = queue.cuid = 7;  // another user's
  EXPECT_EQ(picked({queue}, tree()), Ids{});
  IpcUsers alone = tree();
  alone.alone = true;
  EXPECT_EQ(picked({queue}, alone), Ids{3});
}

TEST(SysvIpc, ASegmentOfAnotherNamespaceIsRefused) {
  IpcUsers users = tree();
  users.mappings = {{7, 1}};
  EXPECT_THROW(picked({}, users), Refusal);
}

/// Of a tree with an IPC namespace of its own.
ImageSet own_namespace() {
  ImageSet images;
  img::inventory_entry inventory;
  inventory.set_img_version(2);
  const auto fill = [](img::task_kobj_ids_entry& ids) {
    ids.set_vm_id(1);
    ids.set_files_id(1);
    ids.set_fs_id(1);
    ids.set_sighand_id(1);
  };
  fill(*inventory.mutable_root_ids());
  inventory.mutable_root_ids()->set_ipc_ns_id(3);
  images.put("inventory.img", magic::kInventory, inventory);
  img::pstree_entry root;
  root.set_pid(9);
  root.set_ppid(0);
  root.set_pgid(9);
  root.set_sid(9);
  images.put("pstree.img", magic::kPstree, root);
  img::task_kobj_ids_entry ids;
  fill(ids);
  ids.set_ipc_ns_id(10);
  images.put("ids-9.img", magic::kIds, ids);
  return images;
}

void fill_desc(img::ipc_desc_entry& desc, uint32_t id, uint32_t key) {
  desc.set_id(id);
  desc.set_key(key);
  desc.set_uid(0);
  desc.set_gid(0);
  desc.set_cuid(0);
  desc.set_cgid(0);
  desc.set_mode(0600);
}

TEST(SysvIpc, ImagesAreChecked) {
  EXPECT_FALSE(read_ipc_images(ImageSet()));
  ImageSet images = own_namespace();
  ASSERT_TRUE(read_ipc_images(images));
  img::ipc_shm_entry shm;
  fill_desc(*shm.mutable_desc(), 5, 1);
  shm.set_size(100);
  shm.set_in_pagemaps(true);
  images.write("ipcns-shm-10.img", magic::kIpcShm).entry(shm);
  EXPECT_EQ(read_ipc_images(images)->segments.size(), 1U);
  fill_desc(*shm.mutable_desc(), 6, 1);
  images.write("ipcns-shm-10.img", magic::kIpcShm).entry(shm);
  EXPECT_THROW(read_ipc_images(images), Corrupt);  // the key

  images = own_namespace();
  img::ipc_sem_entry sem;
  fill_desc(*sem.mutable_desc(), 5, 1);
  sem.set_nsems(3);
  images.write("ipcns-sem-10.img", magic::kIpcSem).entry(sem);
  EXPECT_THROW(read_ipc_images(images), Corrupt);  // no values

  images = own_namespace();
  img::ipc_msg_entry msg;
  fill_desc(*msg.mutable_desc(), 5, 1);
  msg.set_qbytes(100);
  msg.set_qnum(1);
  images.write("ipcns-msg-10.img", magic::kIpcMsg).entry(msg);
  EXPECT_THROW(read_ipc_images(images), Corrupt);  // no message
}

}  // namespace
}  // namespace migrate
