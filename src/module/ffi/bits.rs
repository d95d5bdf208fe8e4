//! The bit fields of nginx's structs. bindgen guesses where they are, and with some versions of
//! nginx wrongly; these constants are made from what the C compiler says, at build time. Those that
//! are used are listed in `bits/list.c`; `scripts/check` refuses bindgen's own methods for them.

use std::marker::PhantomData;

/// A field of one bit of the struct `T`.
pub(crate) struct Flag<T> {
    /// The byte it is in.
    at: usize,
    mask: u8,
    owner: PhantomData<fn(T)>,
}

impl<T> Flag<T> {
    const fn at(at: usize, mask: u8) -> Flag<T> {
        assert!(at < size_of::<T>() && mask.is_power_of_two());
        Flag { at, mask, owner: PhantomData }
    }

    /// Whether the bit is set.
    ///
    /// # Safety
    ///
    /// `of` is a struct that nginx has made or that was zeroed where it lies, and that no other
    /// thread writes.
    #[inline(always)]
    pub(crate) unsafe fn get(&self, of: *const T) -> bool {
        // SAFETY: the byte is one of the struct's, which are all initialized (the caller's promise).
        unsafe { *of.cast::<u8>().add(self.at) & self.mask != 0 }
    }

    /// Sets or clears the bit.
    ///
    /// # Safety
    ///
    /// As of [`Flag::get`].
    #[inline(always)]
    pub(crate) unsafe fn set(&self, of: *mut T, is_set: bool) {
        // SAFETY: as in get(); nginx's other bits in the byte stay.
        unsafe {
            let byte = of.cast::<u8>().add(self.at);
            *byte = if is_set { *byte | self.mask } else { *byte & !self.mask };
        }
    }
}

/// A field of several bits of the struct `T`.
pub(crate) struct Number<T> {
    /// Where the 32-bit word starts that it is in, in bytes. The word need not be aligned.
    at: usize,
    mask: u32,
    owner: PhantomData<fn(T)>,
}

impl<T> Number<T> {
    const fn at(at: usize, mask: u32) -> Number<T> {
        assert!(at + size_of::<u32>() <= size_of::<T>() && mask != 0);
        Number { at, mask, owner: PhantomData }
    }

    /// Sets the field; what it has no bits for is cut off, as in C.
    ///
    /// # Safety
    ///
    /// As of [`Flag::get`].
    #[inline(always)]
    pub(crate) unsafe fn set(&self, of: *mut T, value: u32) {
        // SAFETY: the word is within the struct, whose bytes are all initialized (the caller's
        // promise); what else is in it stays.
        unsafe {
            let word = of.byte_add(self.at).cast::<u32>();
            let bits = (value << self.mask.trailing_zeros()) & self.mask;
            word.write_unaligned((word.read_unaligned() & !self.mask) | bits);
        }
    }
}

include!(concat!(env!("OUT_DIR"), "/bits.rs"));
