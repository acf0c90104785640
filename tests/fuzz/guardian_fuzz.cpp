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

/// A blob and as many descriptors as it wants, if those are few.
template <class Receive>
void pass_memories(std::span<const std::byte> bytes, const Receive& receive) {
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
  receive(there);
}

void receive_packet(std::span<const std::byte> bytes, google::protobuf::MessageLite&& message) {
  auto [here, there] = PacketSocket::pair();
  send_fds(here.fd(), bytes, {});
  there.receive(message, now());
}

void take(const Record& r) {
  const auto file = [&] { return memory_file(r.payload, "fuzz"); };
  std::vector<int> ends;
  switch (r.kind) {
    case kImages: {
      const ImageSet images = decode_images(r.payload);
      const std::vector<std::byte> again = encode_images(images);
      demand(decode_images(again).images() == images.images(), "images that change on their way");
      return;
    }
    case kSources:
      return pass_memories(r.payload, [](PacketSocket& s) { receive_sources(s, now()); });
    case kRoom:
      return pass_memories(r.payload, [](PacketSocket& s) { receive_room(s, now()); });
    case kRequest:
      return receive_packet(r.payload, wire::GuardianRequest());
    case kReply:
      return receive_packet(r.payload, wire::GuardianReply());
    case kTrack:
      cli::decode_message(r.payload);
      return;
    case kPackedImages:
      unpack_images(file().get());
      return;
    case kTable:
      unpack_table(file().get());
      return;
    case kLayout:
      unpack_layout(file().get());
      return;
    case kAreas:
      unpack_areas(file().get());
      return;
    case kResources:
      unpack_resources(file().get());
      return;
    case kDiscards:
      unpack_discards(file().get());
      return;
    case kReserves:
      unpack_reserves(file().get());
      return;
    case kMemories:
      unpack_memories(file().get());
      return;
    case kThreads:
      unpack_threads(file().get());
      return;
    case kNodes:
      unpack_nodes(file().get(), ends);
      return;
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
  layout.tasks.push_back({42, 0, 42, 42, {{.start = 0x1000, .end = 0x2000}}});
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
