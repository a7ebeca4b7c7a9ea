// The child process of stock.ts answers a request: it tells its progress, and then the result. Another one on the same
// device may follow, as it does in the tests: llama.cpp takes longer to start than to evaluate a small model.
import type { Llama, LlamaContext, LlamaContextSequence, LlamaModel, Token } from 'node-llama-cpp' with {
    'resolution-mode': 'import'
};
import { messageOf } from '../errors.js';
import type { Drafting, StockReply, StockRequest, StockResult } from './stock.js';

process.on('message', (request: StockRequest) => {
    run(request).then(
        (result) => reply({ result }),
        (error: unknown) => reply({ error: messageOf(error) })
    );
});
process.on('disconnect', () => process.exit());

function reply(message: StockReply): void {
    process.send!(message);
}

let llama: Llama | undefined;

async function startLlama(device: StockRequest['device']): Promise<Llama> {
    const { getLlama, LlamaLogLevel } = await import('node-llama-cpp');
    return getLlama({
        gpu: device === 'cpu' ? false : device,
        build: 'never',
        logger: (level, message) => {
            if (level === LlamaLogLevel.error || level === LlamaLogLevel.fatal) {
                console.error(message);
            }
        }
    });
}

async function run(request: StockRequest): Promise<StockResult> {
    return withModel(request.model, request, (model) =>
        request.task === 'draft'
            ? withModel(request.draft, request, (draft) => speculate(model, draft, request))
            : answer(model, request)
    );
}

async function withModel<T>(
    modelPath: string,
    { device, gpuLayers }: StockRequest,
    work: (model: LlamaModel) => Promise<T>
): Promise<T> {
    llama ??= await startLlama(device);
    const model = await llama.loadModel({ modelPath, gpuLayers: device === 'cpu' ? 0 : (gpuLayers ?? 'max') });
    try {
        return await work(model);
    } finally {
        await model.dispose();
    }
}

async function answer(model: LlamaModel, request: Exclude<StockRequest, DraftRequest>): Promise<StockResult> {
    const size = request.task === 'nll' ? request.length : request.task === 'speed' ? 2 * request.tokens : 512;
    const sequenceOn = async (threads: number) => {
        const context = await model.createContext({
            contextSize: size + 1, // a context that is full is shifted, at its last token already
            batchSize: size, // a sequence is one batch here, as in the search
            threads,
            flashAttention: request.flashAttention
        });
        return context.getSequence();
    };
    if (request.task === 'nll') {
        // Threads of one half don't wait for those of the other.
        const parts = request.device === 'cpu' && request.threads % 2 === 0 ? 2 : 1;
        const sequences = Array.from({ length: parts }, () => sequenceOn(request.threads / parts));
        return await nll(await Promise.all(sequences), request.tokens, request.length, request.stride);
    }
    const sequence = await sequenceOn(request.threads);
    if (request.task === 'generate') {
        const { LlamaCompletion } = await import('node-llama-cpp');
        const completion = new LlamaCompletion({ contextSequence: sequence });
        return await completion.generateCompletion(request.prompt, { maxTokens: request.tokens, temperature: 0 });
    }
    // All models get the same tokens, since it doesn't matter to the time which tokens they are.
    const prompt = Array.from({ length: request.tokens }, (_, index) => (100 + (index % 1000)) as Token);
    // A prompt of this length comes first, so that nothing is compiled or allocated while the time is taken.
    await sequence.evaluateWithoutGeneratingNewTokens(prompt);
    await sequence.clearHistory();
    const start = performance.now();
    await sequence.evaluateWithoutGeneratingNewTokens(prompt);
    const prompted = performance.now();
    for (const token of prompt) {
        // Each token's successor is sampled, but the next token is a given one: a model may end its own text at any
        // time.
        await sequence.controlledEvaluate([[token, { generateNext: { token: true, options: { temperature: 0 } } }]]);
    }
    const ended = performance.now();
    return {
        prompt: (request.tokens / (prompted - start)) * 1000,
        generation: (request.tokens / (ended - prompted)) * 1000
    };
}

type DraftRequest = Extract<StockRequest, { task: 'draft' }>;

/** Writes after prompts with the target, the draft, and both, and counts where they find the same token likeliest. */
async function speculate(target: LlamaModel, draft: LlamaModel, request: DraftRequest): Promise<Drafting> {
    const { DraftSequenceTokenPredictor } = await import('node-llama-cpp');
    const { prompts, tokens, ahead, threads, flashAttention } = request;
    const contextSize = Math.max(...prompts.map(({ length }) => length)) + tokens + ahead + 2;
    const sequenceOf = async (model: LlamaModel, ...options: Parameters<LlamaContext['getSequence']>) => {
        const context = await model.createContext({ contextSize, batchSize: contextSize, threads, flashAttention });
        return context.getSequence(...options);
    };
    const alone = { target: await sequenceOf(target), draft: await sequenceOf(draft) };
    const tokenPredictor = new DraftSequenceTokenPredictor(await sequenceOf(draft), {
        minTokens: ahead,
        maxTokens: ahead,
        minConfidence: 0
    });
    const both = await sequenceOf(target, { tokenPredictor });

    /** What is written after a prompt, and how many tokens a millisecond. The prompt isn't part of the time. */
    const write = async (sequence: LlamaContextSequence, prompt: number[]) => {
        const written: Token[] = [];
        await sequence.clearHistory();
        await sequence.evaluateWithoutGeneratingNewTokens(prompt.slice(0, -1) as Token[]);
        const start = performance.now();
        for await (const token of sequence.evaluate(prompt.slice(-1) as Token[], { temperature: 0 })) {
            if (written.push(token) === tokens) {
                break;
            }
        }
        return { written, time: performance.now() - start };
    };
    const total = { target: 0, draft: 0, together: 0 };
    const written = { ...total };
    const measure = async (who: keyof typeof total, sequence: LlamaContextSequence, prompt: number[]) => {
        const one = await write(sequence, prompt);
        total[who] += one.time;
        written[who] += one.written.length;
        return one.written;
    };
    let [same, compared] = [0, 0];
    await write(both, prompts[0]!); // so that nothing is compiled or allocated while the time is taken
    for (const [i, prompt] of prompts.entries()) {
        const expected = await measure('target', alone.target, prompt);
        await measure('draft', alone.draft, prompt);
        await measure('together', both, prompt);
        await alone.draft.clearHistory();
        const known = [...prompt, ...expected] as Token[];
        const found = await alone.draft.controlledEvaluate(
            known.map((token, at) =>
                at >= prompt.length - 1 && at < known.length - 1
                    ? [token, { generateNext: { token: true, options: { temperature: 0 } } }]
                    : token
            )
        );
        found.forEach((result, at) => {
            if (result?.next.token !== undefined && result.next.token !== null) {
                compared++;
                same += Number(result.next.token === known[at + 1]);
            }
        });
        reply({ progress: [i + 1, prompts.length] });
    }
    const speed = (who: keyof typeof total) => (1000 * written[who]) / total[who];
    return {
        acceptance: same / compared,
        target: speed('target'),
        draft: speed('draft'),
        together: speed('together')
    };
}

/**
 * Computes −ln softmax(logits)[token] at every stride-th of the positions that predict a known token.
 * @param contexts each a sequence of a context of its own
 */
async function nll(
    contexts: readonly LlamaContextSequence[],
    tokens: Int32Array,
    length: number,
    stride: number
): Promise<Float32Array> {
    const count = tokens.length / length;
    const result = new Float32Array(Math.ceil((count * (length - 1)) / stride));
    let [begun, done] = [0, 0];
    const evaluate = async (sequence: LlamaContextSequence, index: number) => {
        const ids = Array.from(tokens.subarray(index * length, (index + 1) * length)) as Token[];
        const positionOf = (i: number) => index * (length - 1) + i;
        const isWanted = (i: number) => i < length - 1 && positionOf(i) % stride === 0;
        await sequence.clearHistory();
        // As in the search, all tokens come at once, the last one too: llama.cpp chooses its kernels by the batch's
        // size.
        await sequence.controlledEvaluate(
            ids.map((token, i) =>
                isWanted(i) ? [token, { generateNext: { logits: true, options: { temperature: 0 } } }] : token
            ),
            {
                onTokenResult(i, { next }) {
                    // The logits are summed here. node-llama-cpp's own total is a sum of floats that loses the tail,
                    // 1e-4 of it with 49,152 tokens.
                    const logits = next.logits!;
                    let max = -Infinity;
                    for (const logit of logits.values()) {
                        max = Math.max(max, logit);
                    }
                    let sum = 0;
                    for (const logit of logits.values()) {
                        sum += Math.exp(logit - max);
                    }
                    result[positionOf(i) / stride] = Math.log(sum) + max - logits.get(ids[i + 1]!)!;
                    delete next.logits; // or a sequence's worth of vocabularies stays in memory
                }
            }
        );
        reply({ progress: [++done, count] });
    };
    await Promise.all(
        contexts.map(async (sequence) => {
            while (begun < count) {
                await evaluate(sequence, begun++);
            }
        })
    );
    return result;
}
