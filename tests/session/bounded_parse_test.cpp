#include "core/image/bounded_parse.h"

#include <gtest/gtest.h>
#include <malloc.h>

#include <string>

#include "core/image/image_set.h"
#include "core/image/magic.h"
#include "images/mm.pb.h"
#include "migration.pb.h"

namespace migrate {
namespace {

std::span<const std::byte> bytes_of(const std::string& text) { return as_bytes_of(text); }

size_t heap_in_use() {
  const struct mallinfo2 info = ::mallinfo2();
  return info.uordblks + info.hblkhd;
}

/// A field of wire type 2.
std::string field(unsigned number, const std::string& content) {
  std::string out(1, static_cast<char>(number << 3 | 2));
  if (number > 15) out = {static_cast<char>((number << 3 | 2) | 0x80), static_cast<char>(number >> 4)};
  size_t size = content.size();
  for (; size >= 0x80; size >>= 7) out += static_cast<char>(size | 0x80);
  return out + static_cast<char>(size) + content;
}

/// `count` empty elements of the list `number`.
std::string empty_ones(unsigned number, size_t count) {
  const std::string one = field(number, "");
  std::string out;
  for (size_t i = 0; i < count; ++i) out += one;
  return out;
}

constexpr size_t kMany = 1'900'000;  // in a frame of 4 MiB

TEST(BoundedParse, EmptyElementsOfEveryListOfAPeerStayWithinTheBudget) {
  const std::string hostile[] = {
      field(14, empty_ones(1, kMany)),             // Check.files
      field(14, empty_ones(2, kMany)),             // Check.ports
      field(14, field(1, empty_ones(10, kMany))),  // Check.File.locks
      field(15, empty_ones(1, kMany)),             // CheckReply.refusals: strings
      field(10, empty_ones(2, kMany)),             // Hello.features: strings
      field(20, empty_ones(1, kMany)),             // FillReady.cold
      field(30, empty_ones(2, kMany)),             // Layout.tasks
      field(30, field(2, empty_ones(5, kMany))),   // Layout.Task.areas
      field(30, empty_ones(3, kMany)),             // Layout.objects
      field(32, empty_ones(1, kMany)),             // Discards.runs
      field(40, empty_ones(1, kMany)),             // Reserve.runs
  };
  for (const std::string& wire : hostile) {
    wire::Message message;
    const size_t before = heap_in_use();
    EXPECT_FALSE(parse_bounded(message, bytes_of(wire))) << static_cast<int>(wire[0]);
    EXPECT_LE(heap_in_use() - before, parse_budget(wire.size()));
  }
}

TEST(BoundedParse, TheLargestHonestMessagesPass) {
  wire::Message layout;
  for (int task = 0; task < 5; ++task) {
    wire::Layout::Task& t = *layout.mutable_layout()->add_tasks();
    for (uint64_t i = 0; i < 10'000; ++i) {
      wire::Layout::Area& area = *t.add_areas();
      area.set_start(0x400000 + i * 0x3000);
      area.set_end(area.start() + 0x1000);
    }
  }
  wire::Message discards;
  for (uint64_t i = 0; i < 50'000; ++i) {
    wire::Discards::Run& run = *discards.mutable_discards()->add_runs();
    run.set_kind(1);
    run.set_id(2);
    run.set_address(0x400000 + i * 0x3000);
    run.set_pages(1);
  }
  wire::Message cold;
  for (uint64_t i = 0; i < 100'000; ++i) {
    wire::MemoryName& name = *cold.mutable_fill_ready()->add_cold();
    name.set_kind(1);
    name.set_id(i);
  }
  for (const wire::Message& message : {layout, discards, cold}) {
    wire::Message again;
    ASSERT_TRUE(parse_bounded(again, bytes_of(message.SerializeAsString())));
    EXPECT_EQ(again.SerializeAsString(), message.SerializeAsString());
  }
  wire::Message small;
  small.mutable_refused()->set_sentence("no");
  EXPECT_TRUE(parse_bounded(small, bytes_of(small.SerializeAsString())));
}

TEST(BoundedParse, WhatEndsInTheMiddleDoesNotParse) {
  wire::Message message;
  for (uint64_t i = 0; i < 20'000; ++i) message.mutable_discards()->add_runs()->set_address(i << 12);
  const std::string wire = message.SerializeAsString();
  wire::Message again;
  EXPECT_FALSE(parse_bounded(again, bytes_of(wire).first(wire.size() - 1)));
  EXPECT_FALSE(parse_bounded(again, bytes_of(wire.substr(0, 3))));
}

TEST(BoundedParse, AnImageOfManyMappingsIsReadAndOneOfEmptyOnesIsNot) {
  ImageSet images;
  img::mm_entry mm;
  for (const auto set :
       {&img::mm_entry::set_mm_start_code, &img::mm_entry::set_mm_end_code, &img::mm_entry::set_mm_start_data,
        &img::mm_entry::set_mm_end_data, &img::mm_entry::set_mm_start_stack, &img::mm_entry::set_mm_start_brk,
        &img::mm_entry::set_mm_brk, &img::mm_entry::set_mm_arg_start, &img::mm_entry::set_mm_arg_end,
        &img::mm_entry::set_mm_env_start, &img::mm_entry::set_mm_env_end})
    (mm.*set)(0x400000);
  mm.set_exe_file_id(1);
  const std::string head = mm.SerializeAsString();
  for (uint64_t i = 0; i < 200'000; ++i) {
    img::vma_entry& v = *mm.add_vmas();
    v.set_start(0x400000 + i * 0x3000);
    v.set_end(v.start() + 0x1000);
    for (const auto set : {&img::vma_entry::set_prot, &img::vma_entry::set_flags, &img::vma_entry::set_status})
      (v.*set)(3);
    v.set_pgoff(0);
    v.set_shmid(0);
    v.set_fd(-1);
  }
  images.put("mm-1.img", magic::kMm, mm);
  img::mm_entry again;
  images.need("mm-1.img", magic::kMm, again);
  EXPECT_EQ(again.vmas_size(), 200'000);

  const std::string hostile = head + empty_ones(14, kMany);
  const auto size = static_cast<uint32_t>(hostile.size());
  ImageWriter writer = images.write("mm-2.img", magic::kMm);
  writer.raw(std::as_bytes(std::span(&size, 1)));
  writer.raw(bytes_of(hostile));
  const size_t before = heap_in_use();
  EXPECT_THROW(images.need("mm-2.img", magic::kMm, again), Corrupt);
  EXPECT_LE(heap_in_use(), before + parse_budget(hostile.size()));
}

}  // namespace
}  // namespace migrate
