// Loads, evaluates and disposes models in ways that leak or crash where something is not cleaned up. Prints what came
// of it as one JSON object.
const path = require('node:path');
const { isMainThread, parentPort, Worker } = require('node:worker_threads');
const { loadCalibration, Model, perplexityOf } = require('../../dist/index.js');

const tiny = path.resolve(__dirname, '..', '..', 'models', 'blockpruner-tiny.gguf');
const load = () => Model.load(tiny, { device: 'cpu', threads: 1 });
const textFor = (model) => loadCalibration(model, { file: 'embedded', samples: 1, context: 32 });

async function perplexity() {
    const model = await load();
    try {
        return await perplexityOf(model, await textFor(model));
    } finally {
        model.dispose();
    }
}

const inWorker = () =>
    new Promise((resolve, reject) => {
        const worker = new Worker(__filename);
        worker.once('message', resolve);
        worker.once('error', reject);
    });

async function main() {
    const expected = await perplexity();

    const resident = [];
    for (let cycle = 0; cycle < 100; cycle++) {
        await perplexity();
        global.gc();
        resident.push(process.memoryUsage.rss());
    }

    const kept = await load();
    const text = await textFor(kept);
    const evaluations = [kept.evaluate(text), kept.evaluate(text, { skip: [{ kind: 'ffn', layer: 3 }] })];
    kept.dispose(); // while they run
    const disposed = (await Promise.allSettled(evaluations)).map(({ status }) => status);
    const afterwards = await kept.evaluate(text).then(
        () => 'evaluated',
        (error) => error.message
    );

    const together = await Promise.all([perplexity(), perplexity(), inWorker(), inWorker(), perplexity()]);
    for (let i = 0; i < 20; i++) {
        const stopped = new Worker(__filename); // which is ended in the middle of whatever it does
        await new Promise((resolve) => setTimeout(resolve, 15 * i));
        await stopped.terminate();
    }
    const last = await perplexity();

    // an addon that is loaded a second time, as by two versions of a package that depends on this one
    Object.keys(require.cache).forEach((file) => delete require.cache[file]);
    const again = require('../../dist/index.js');
    const model = await again.Model.load(tiny, { device: 'cpu', threads: 1 });
    const twice = await again.perplexityOf(model, text);
    model.dispose();
    console.log(JSON.stringify({ expected, resident, disposed, afterwards, together, last, twice }));
}

if (isMainThread) {
    main();
} else {
    perplexity().then((value) => parentPort.postMessage(value));
}
