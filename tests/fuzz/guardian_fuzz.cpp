// What agent, guardian, coordinator and keeper hand to each other, as a confused or half-dead one would. A record is
// one thing; its kind says which.
#include <fcntl.h>

#include <functional>

#include "core/restore/shell.h"
#include "fuzz.h"
#include "migrate/cli/track_wire.h"
#include "migrate/session/guardian/packet.h"
#include "migration.pb.h"
#include "records.h"

namespace migrate::fuzz {
namespace {

enum Kind : uint8_t {
  kImages,
  kSources,
  kRoom,
  kRequest,
  kReply,
  kTrack,
  kPackedImages,
  kTable,
  kLayout,
  kAreas,
  kResources,
  kDiscards,
  kReserves,
  kMemories,
  kThreads,
  kNodes,
  kKinds
};

Deadline now() { return Deadline::in(std::chrono::milliseconds(0)); }

/// What was taken can be handed on, and taken again as the same.
template <class Work>
void demand_taken_again(const Work& work) {
  try {
    work();
  } catch (const Error& e) {
    demand(false, e.what());
  }
}

/// A blob and as many descriptors as it wants, if those are few.
template <class Receive, class Send>
void pass_memories(std::span<const std::byte> bytes, const Receive& receive, const Send& send) {
  auto [here, there] = PacketSocket::pair();
  here.send_blob(bytes);
  wire::Memories memories;
  size_t count = 0;
  if (memories.ParseFromArray(bytes.data(), static_cast<int>(bytes.size())))
    for (const auto& m : memories.memories())
      count += static_cast<size_t>(m.with_mem()) + static_cast<size_t>(m.with_process()) +
               static_cast<size_t>(m.with_userfaultfd());
  const Fd null = open_path("/dev/null", O_RDWR);
  here.send_descriptors(std::vector<int>(std::min<size_t>(count, 20), null.get()));
  const auto taken = receive(there);
  demand_taken_again([&] {
    auto [near, far] = PacketSocket::pair();
    send(near, taken);
    send(near, receive(far));
  });
}

void receive_packet(std::span<const std::byte> bytes, google::protobuf::MessageLite&& message) {
  auto ends = PacketSocket::pair();
  send_fds(ends.first.fd(), bytes, {});
  if (ends.second.receive(message, now()) != PacketSocket::Outcome::message) return;
  ends.second.send(message);
  demand_taken_again([&] { ends.first.receive(message, now()); });
}

template <class Unpack, class Pack>
void there_and_back(const Fd& file, const Unpack& unpack, const Pack& pack) {
  const Fd once = pack(unpack(file.get()));
  demand_taken_again([&] {
    const Fd twice = pack(unpack(once.get()));
    constexpr size_t kMost = 64 << 20;
    demand(read_whole(once.get(), kMost) == read_whole(twice.get(), kMost), "a list that changes on its way");
  });
}

void track(std::span<const std::byte> bytes) {
  const cli::TrackMessage message = cli::decode_message(bytes);
  auto ends = PacketSocket::pair();
  cli::send_message(ends.first, message);
  demand_taken_again([&] {
    const cli::TrackMessage again = cli::receive_message(ends.second, now());
    demand(cli::encode_message(again) == cli::encode_message(message), "a message that changes on its way");
  });
}

void take(const Record& r) {
  const auto file = [&] { return memory_file(r.payload, "fuzz"); };
  switch (r.kind) {
    case kImages: {
      const ImageSet images = decode_images(r.payload);
      const std::vector<std::byte> again = encode_images(images);
      demand(decode_images(again).images() == images.images(), "images that change on their way");
      return;
    }
    case kSources:
      return pass_memories(
          r.payload, [](PacketSocket& s) { return receive_sources(s, now()); },
          [](PacketSocket& s, const auto& sources) { send_sources(s, sources); });
    case kRoom:
      return pass_memories(
          r.payload, [](PacketSocket& s) { return receive_room(s, now()); },
          [](PacketSocket& s, const auto& room) { send_room(s, room); });
    case kRequest:
      return receive_packet(r.payload, wire::GuardianRequest());
    case kReply:
      return receive_packet(r.payload, wire::GuardianReply());
    case kTrack:
      return track(r.payload);
    case kPackedImages:
      return there_and_back(
          file(), [](int fd) { return unpack_images(fd); }, pack_images);
    case kTable:
      return there_and_back(file(), unpack_table, pack_table);
    case kLayout:
      return there_and_back(file(), unpack_layout, pack_layout);
    case kAreas:
      return there_and_back(file(), unpack_areas, pack_areas);
    case kResources:
      return there_and_back(file(), unpack_resources, pack_resources);
    case kDiscards:
      return there_and_back(file(), unpack_discards, [](const auto& list) { return pack_discards(list); });
    case kReserves:
      return there_and_back(file(), unpack_reserves, [](const auto& list) { return pack_reserves(list); });
    case kMemories:
      return there_and_back(file(), unpack_memories, pack_memories);
    case kThreads:
      return there_and_back(file(), unpack_threads, pack_threads);
    case kNodes: {
      std::vector<int> ends;
      return there_and_back(
          file(),
          [&](int fd) {
            ends.clear();
            return unpack_nodes(fd, ends);
          },
          [&](const auto& nodes) { return pack_nodes(nodes, ends); });
    }
    default:
      return;
  }
}

wire::Memories memories(bool room) {
  wire::Memories all;
  wire::Memories::Memory& m = *all.add_memories();
  m.set_kind(1);
  m.set_id(42);
  m.set_with_mem(true);
  if (room) m.set_with_process(true);
  wire::Memories::Range& range = *m.add_ranges();
  range.set_address(0x10000000);
  range.set_bytes(0x3000);
  range.set_staging(0x50000000);
  if (room) all.add_cold()->set_kind(1);
  return all;
}

}  // namespace

const Target kTarget{"guardian_fuzz", true};

void run(std::span<const std::byte> input) {
  for (const Record& r : records_of(input)) try {
      take(r);
    } catch (const Error&) {  // as it should be
    }
}

std::vector<std::vector<std::byte>> seeds() {
  std::vector<std::vector<std::byte>> all;
  const auto add = [&](Kind kind, std::span<const std::byte> bytes) {
    append_record(all.emplace_back(), kind, 0, bytes);
  };
  const auto packed = [&](Kind kind, const Fd& fd) { add(kind, read_whole(fd.get(), 1 << 16)); };
  ImageSet images;
  images.write("core-42.img", 7).raw(as_bytes_of("something"));
  images.write("pstree.img", 8).raw(as_bytes_of("else"));
  add(kImages, encode_images(images));
  add(kSources, as_bytes_of(memories(false).SerializeAsString()));
  add(kRoom, as_bytes_of(memories(true).SerializeAsString()));
  wire::GuardianRequest request;
  request.mutable_start_source()->set_label("pid:42");
  add(kRequest, as_bytes_of(request.SerializeAsString()));
  wire::GuardianReply reply;
  reply.mutable_failed()->set_sentence("no");
  add(kReply, as_bytes_of(reply.SerializeAsString()));
  cli::TrackMessage track;
  track.folder = "folder";
  track.pages[{MemoryId::Kind::task, 42}].append(0x1000, 0x3000);
  add(kTrack, cli::encode_message(track));
  packed(kPackedImages, pack_images(images));
  packed(kTable, pack_table({{1, 2}, {3, 4}}));
  TreeLayout layout;
  layout.tasks.push_back({42, 0, 42, 42, -1, SIGCHLD, {{.start = 0x1000, .end = 0x2000}}});
  layout.objects.push_back({7, 0x1000, true, "memory"});
  packed(kLayout, pack_layout(layout));
  packed(kAreas, pack_areas(layout.tasks[0].areas));
  Resources resources;
  resources.files[{1, 2}] = 3;
  resources.shared_memory[4] = 5;
  packed(kResources, pack_resources(resources));
  const PageDiscard discard{{MemoryId::Kind::task, 42}, 0x1000, 1};
  packed(kDiscards, pack_discards(std::span(&discard, 1)));
  const PageReserve reserve{{MemoryId::Kind::task, 42}, 0x1000, 1, false};
  packed(kReserves, pack_reserves(std::span(&reserve, 1)));
  packed(kMemories, pack_memories({discard.memory}));
  packed(kThreads, pack_threads({42, 43}));
  TaskNode root, child;
  root.pid = root.pgid = root.sid = 42;
  child.pid = 43;
  child.parent = 0;
  packed(kNodes, pack_nodes({root, child}, {5, 6}));
  return all;
}

}  // namespace migrate::fuzz
